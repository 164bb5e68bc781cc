import com.alibaba.fastjson.JSONArray;
import com.alibaba.fastjson.JSONObject;
import java.lang.reflect.Field;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.rocketmq.client.ClientConfig;
import org.apache.rocketmq.client.consumer.AckResult;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.PopResult;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.impl.ClientRemotingProcessor;
import org.apache.rocketmq.client.impl.consumer.DefaultMQPushConsumerImpl;
import org.apache.rocketmq.client.impl.mqclient.MQClientAPIExt;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageRequestMode;
import org.apache.rocketmq.remoting.netty.NettyClientConfig;
import org.apache.rocketmq.remoting.protocol.header.AckMessageRequestHeader;
import org.apache.rocketmq.remoting.protocol.header.ChangeInvisibleTimeRequestHeader;
import org.apache.rocketmq.remoting.protocol.header.ExtraInfoUtil;
import org.apache.rocketmq.remoting.protocol.header.NotificationRequestHeader;
import org.apache.rocketmq.remoting.protocol.header.PopMessageRequestHeader;

/** POP: the push consumer whose group brokers let pop, and the single requests as Apache's proxy sends them. */
public class Pop {
    static final long TIMEOUT = 10000;
    static final Map<String, MQClientAPIExt> CALLS = new ConcurrentHashMap<>();

    /** Lets the broker at `address` tell members of the group to pop the topic, each of them any queue. */
    static Object mode(JSONObject c) throws Exception {
        calls(c).setMessageRequestMode(c.getString("address"), c.getString("topic"), c.getString("group"),
            MessageRequestMode.POP, 0, TIMEOUT);
        return true;
    }

    /**
     * Starts a consumer that asks brokers for its queues and leases messages for `lease` ms. A delivery numbered below
     * `fail` fails and shall come again a second later; with `hold` a handler never ends. "stop" ends the consumer.
     */
    static Object consume(JSONObject c) throws Exception {
        String name = c.getString("name");
        int failures = c.getIntValue("fail");
        DefaultMQPushConsumer consumer = Peer.configured(new DefaultMQPushConsumer(c.getString("group")), c, name);
        consumer.setClientRebalance(false);
        consumer.setPopInvisibleTime(c.getLongValue("lease"));
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(c.getString("topic"), Peer.selector(c));
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            boolean failed = false;
            for (MessageExt message : messages) {
                Peer.received(name, message);
                failed |= message.getReconsumeTimes() < failures;
            }
            while (c.getBooleanValue("hold")) {
                try {
                    Thread.sleep(1000);
                } catch (InterruptedException end) {
                    return ConsumeConcurrentlyStatus.RECONSUME_LATER;
                }
            }
            return failed ? ConsumeConcurrentlyStatus.RECONSUME_LATER : ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        Field delays = DefaultMQPushConsumerImpl.class.getDeclaredField("popDelayLevel");
        delays.setAccessible(true);
        ((int[]) delays.get(consumer.getDefaultMQPushConsumerImpl()))[0] = 1; // seconds; ten otherwise
        consumer.start();
        Peer.CONSUMERS.put(name, consumer);
        return true;
    }

    static MQClientAPIExt calls(JSONObject c) {
        return CALLS.computeIfAbsent(c.getString("namesrv"), namesrv -> {
            ClientConfig config = Peer.configured(new ClientConfig(), c, "pop");
            MQClientAPIExt calls = new MQClientAPIExt(config, new NettyClientConfig(), new ClientRemotingProcessor(null), null);
            calls.updateNameServerAddressList(namesrv);
            calls.start();
            return calls;
        });
    }

    /** Pops up to `count` messages for `lease` ms, waiting up to `poll` ms; each has its `receipt`. */
    static Object take(JSONObject c) throws Exception {
        PopMessageRequestHeader header = new PopMessageRequestHeader();
        header.setConsumerGroup(c.getString("group"));
        header.setTopic(c.getString("topic"));
        header.setQueueId(-1);
        header.setMaxMsgNums(c.getIntValue("count"));
        header.setInvisibleTime(c.getLongValue("lease"));
        header.setPollTime(c.getLongValue("poll"));
        header.setBornTime(System.currentTimeMillis());
        header.setInitMode(0);
        header.setExpType("TAG");
        header.setExp("*");
        header.setOrder(c.getBooleanValue("order"));
        PopResult result = calls(c).popMessageAsync(c.getString("address"), c.getString("broker"), header,
            c.getLongValue("poll") + TIMEOUT).get();
        JSONArray all = new JSONArray();
        if (result.getMsgFoundList() != null) {
            for (MessageExt message : result.getMsgFoundList()) {
                all.add(Peer.describe(message).fluentPut("receipt", message.getProperty("POP_CK")));
            }
        }
        return all;
    }

    /** Acknowledges the messages of `receipts`, one by one or with `batch` in one request. */
    static Object ack(JSONObject c) throws Exception {
        String group = c.getString("group");
        String topic = c.getString("topic");
        List<String> receipts = c.getJSONArray("receipts").toJavaList(String.class);
        if (c.getBooleanValue("batch")) {
            AckResult result = calls(c).batchAckMessageAsync(c.getString("address"), topic, group, receipts, TIMEOUT).get();
            return result.getStatus().name();
        }
        JSONArray all = new JSONArray();
        for (String receipt : receipts) {
            String[] parts = ExtraInfoUtil.split(receipt);
            AckMessageRequestHeader header = new AckMessageRequestHeader();
            header.setConsumerGroup(group);
            header.setTopic(ExtraInfoUtil.getRealTopic(parts, topic, group));
            header.setQueueId(ExtraInfoUtil.getQueueId(parts));
            header.setOffset(ExtraInfoUtil.getQueueOffset(parts));
            header.setExtraInfo(receipt);
            all.add(calls(c).ackMessageAsync(c.getString("address"), header, TIMEOUT).get().getStatus().name());
        }
        return String.join(",", new java.util.TreeSet<>(all.toJavaList(String.class)));
    }

    /** Lets the message of `receipt` come again in `lease` ms; gives the receipt that counts from now on. */
    static Object change(JSONObject c) throws Exception {
        String receipt = c.getString("receipt");
        String[] parts = ExtraInfoUtil.split(receipt);
        ChangeInvisibleTimeRequestHeader header = new ChangeInvisibleTimeRequestHeader();
        header.setConsumerGroup(c.getString("group"));
        header.setTopic(ExtraInfoUtil.getRealTopic(parts, c.getString("topic"), c.getString("group")));
        header.setQueueId(ExtraInfoUtil.getQueueId(parts));
        header.setOffset(ExtraInfoUtil.getQueueOffset(parts));
        header.setExtraInfo(receipt);
        header.setInvisibleTime(c.getLongValue("lease"));
        AckResult result = calls(c).changeInvisibleTimeAsync(c.getString("address"), c.getString("broker"), header, TIMEOUT).get();
        return result.getExtraInfo();
    }

    /** Whether there is a message, waiting up to `poll` ms for one. */
    static Object notified(JSONObject c) throws Exception {
        NotificationRequestHeader header = new NotificationRequestHeader();
        header.setConsumerGroup(c.getString("group"));
        header.setTopic(c.getString("topic"));
        header.setQueueId(-1);
        header.setPollTime(c.getLongValue("poll"));
        header.setBornTime(System.currentTimeMillis());
        return calls(c).notification(c.getString("address"), header, c.getLongValue("poll") + TIMEOUT).get();
    }
}
