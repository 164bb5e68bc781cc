import com.alibaba.fastjson.JSONObject;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.message.Message;

/** Timer messages, their recall, and priorities: what the client has since 5.0, 5.3 and 5.4. */
public class Timers {
    /** One message: body (text), and one of delayMs, delaySec, deliverMs, priority. */
    static Object send(JSONObject c) throws Exception {
        Message message = new Message(c.getString("topic"), c.getString("text").getBytes("UTF-8"));
        if (c.containsKey("delayMs")) {
            message.setDelayTimeMs(c.getLongValue("delayMs"));
        }
        if (c.containsKey("delaySec")) {
            message.setDelayTimeSec(c.getLongValue("delaySec"));
        }
        if (c.containsKey("deliverMs")) {
            message.setDeliverTimeMs(c.getLongValue("deliverMs"));
        }
        if (c.containsKey("priority")) {
            message.setPriority(c.getIntValue("priority"));
        }
        SendResult result = Peer.producer(c).send(message);
        return new JSONObject().fluentPut("status", result.getSendStatus().name())
            .fluentPut("queue", result.getMessageQueue().getQueueId())
            .fluentPut("id", result.getMsgId()).fluentPut("handle", result.getRecallHandle());
    }

    /** The unique id of the message that was taken back. */
    static Object recall(JSONObject c) throws Exception {
        return Peer.producer(c).recallMessage(c.getString("topic"), c.getString("handle"));
    }
}
