import com.alibaba.fastjson.JSONObject;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.rocketmq.client.producer.LocalTransactionState;
import org.apache.rocketmq.client.producer.TransactionListener;
import org.apache.rocketmq.client.producer.TransactionMQProducer;
import org.apache.rocketmq.client.producer.TransactionSendResult;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;

/** Transactions. What becomes of a message is said by its property `now`, and when a broker asks by `asked`. */
public class Transactions {
    static final Map<String, TransactionMQProducer> PRODUCERS = new ConcurrentHashMap<>();
    /** How often a broker asked about a body. */
    static final Map<String, Integer> ASKED = new ConcurrentHashMap<>();

    static final TransactionListener LISTENER = new TransactionListener() {
        @Override
        public LocalTransactionState executeLocalTransaction(Message message, Object argument) {
            return LocalTransactionState.valueOf(message.getUserProperty("now"));
        }

        @Override
        public LocalTransactionState checkLocalTransaction(MessageExt message) {
            int times = ASKED.merge(new String(message.getBody()), 1, Integer::sum);
            String asked = message.getUserProperty("asked");
            if (asked == null || times == 1 && asked.startsWith("LATER_")) {
                return LocalTransactionState.UNKNOW;
            }
            return LocalTransactionState.valueOf(asked.replace("LATER_", ""));
        }
    };

    /** Sends a message with the body `text`; gives what the client thinks of it. */
    static Object send(JSONObject c) throws Exception {
        String group = c.getString("group");
        TransactionMQProducer producer = PRODUCERS.get(group + c.getString("namesrv"));
        if (producer == null) {
            producer = Peer.configured(new TransactionMQProducer(group), c, "tx" + group);
            producer.setTransactionListener(LISTENER);
            producer.start();
            PRODUCERS.put(group + c.getString("namesrv"), producer);
        }
        Message message = new Message(c.getString("topic"), c.getString("text").getBytes("UTF-8"));
        message.putUserProperty("now", c.getString("now"));
        if (c.containsKey("asked")) {
            message.putUserProperty("asked", c.getString("asked"));
        }
        TransactionSendResult result = producer.sendMessageInTransaction(message, null);
        return result.getSendStatus().name() + " " + result.getLocalTransactionState().name();
    }

    static Object asked(JSONObject c) {
        return ASKED.getOrDefault(c.getString("text"), 0);
    }
}
