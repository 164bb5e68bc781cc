import com.alibaba.fastjson.JSONObject;
import java.util.Arrays;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.utils.MessageUtil;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/** Requests and replies. */
public class Rpc {
    /** Asks with the body `text`; gives the reply. */
    static Object request(JSONObject c) throws Exception {
        Message message = new Message(c.getString("topic"), c.getString("text").getBytes("UTF-8"));
        return Peer.describe(Arrays.asList((MessageExt) Peer.producer(c).request(message, c.getLongValue("within")))).get(0);
    }

    /** Starts a consumer that replies with the body in capitals; "stop" ends it. */
    static Object respond(JSONObject c) throws Exception {
        DefaultMQProducer producer = Peer.producer(c);
        String name = c.getString("name");
        DefaultMQPushConsumer consumer = Peer.configured(new DefaultMQPushConsumer(c.getString("group")), c, name);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(c.getString("topic"), "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            for (MessageExt message : messages) {
                try {
                    byte[] body = new String(message.getBody(), "UTF-8").toUpperCase().getBytes("UTF-8");
                    producer.send(MessageUtil.createReplyMessage(message, body));
                } catch (Exception error) {
                    error.printStackTrace();
                    return ConsumeConcurrentlyStatus.RECONSUME_LATER;
                }
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        Peer.CONSUMERS.put(name, consumer);
        return true;
    }
}
