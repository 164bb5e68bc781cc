import com.alibaba.fastjson.JSONObject;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;

/** Clients that trace. */
public class Traces {
    static final Map<String, DefaultMQProducer> PRODUCERS = new ConcurrentHashMap<>();

    /** Sends the body `text`; gives what "send" gives. */
    static Object send(JSONObject c) throws Exception {
        DefaultMQProducer producer = PRODUCERS.get(c.getString("namesrv"));
        if (producer == null) {
            producer = Peer.configured(new DefaultMQProducer("tracing_producers", true, null), c, "tracing");
            producer.start();
            PRODUCERS.put(c.getString("namesrv"), producer);
        }
        Message message = new Message(c.getString("topic"), "tagged", "k1 k2", c.getString("text").getBytes("UTF-8"));
        SendResult result = producer.send(message);
        return Peer.describe(result);
    }

    /** Starts a consumer; "stop" ends it, and sends its last traces. */
    static Object consume(JSONObject c) throws Exception {
        String name = c.getString("name");
        DefaultMQPushConsumer consumer = Peer.configured(new DefaultMQPushConsumer(c.getString("group"), true, null), c, name);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(c.getString("topic"), "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            messages.forEach(message -> Peer.received(name, message));
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        Peer.CONSUMERS.put(name, consumer);
        return true;
    }
}
