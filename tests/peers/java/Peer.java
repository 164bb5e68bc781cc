import com.alibaba.fastjson.JSON;
import com.alibaba.fastjson.JSONArray;
import com.alibaba.fastjson.JSONObject;
import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.lang.reflect.Field;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Base64;
import java.util.Collections;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.ClientConfig;
import org.apache.rocketmq.client.consumer.DefaultLitePullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPullConsumer;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.MessageSelector;
import org.apache.rocketmq.client.consumer.PullResult;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.ConsumeOrderlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.consumer.listener.MessageListenerOrderly;
import org.apache.rocketmq.client.consumer.rebalance.AllocateMessageQueueAveragely;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.MessageQueueSelector;
import org.apache.rocketmq.client.producer.SendCallback;
import org.apache.rocketmq.client.producer.SendResult;
import org.apache.rocketmq.common.consumer.ConsumeFromWhere;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.apache.rocketmq.common.message.MessageQueue;
import org.apache.rocketmq.remoting.RPCHook;

/**
 * The Java client on a string: one JSON object a line comes in ("do" names the verb), one JSON object a line goes out
 * with the same "id"; what consumers receive goes out in between as {"event": "message"}. Bodies are base64.
 * Compiles against rocketmq-client 4.9 and 5.x alike, as do the classes beside it; those in v5 need 5.x.
 */
public class Peer {
    static final PrintStream OUT = System.out;
    static final Map<String, DefaultMQProducer> PRODUCERS = new ConcurrentHashMap<>();
    static final Map<String, DefaultMQPullConsumer> PULLERS = new ConcurrentHashMap<>();
    static final Map<String, DefaultMQPushConsumer> CONSUMERS = new ConcurrentHashMap<>();
    static boolean hurrying;

    public static void main(String[] args) throws Exception {
        System.setOut(System.err); // the libraries chat on stdout; the protocol keeps it for itself
        say(new JSONObject().fluentPut("event", "ready"));
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            JSONObject command = JSON.parseObject(line);
            JSONObject reply = new JSONObject().fluentPut("id", command.get("id"));
            try {
                reply.put("result", run(command));
            } catch (Throwable error) {
                reply.put("error", error.toString());
            }
            say(reply);
        }
        for (DefaultMQPushConsumer consumer : CONSUMERS.values()) {
            consumer.shutdown();
        }
        System.exit(0);
    }

    static synchronized void say(JSONObject line) {
        OUT.println(line.toJSONString());
        OUT.flush();
    }

    static Object run(JSONObject c) throws Exception {
        switch (c.getString("do")) {
            case "send": return send(c);
            case "consume": return consume(c);
            case "stop": return stop(c);
            case "queues": return queues(c);
            case "search": return producer(c).searchOffset(queue(c), c.getLongValue("timestamp"));
            case "view": return describe(producer(c).viewMessage(c.getString("topic"), c.getString("message_id")));
            case "query": return describe(producer(c).queryMessage(c.getString("topic"), c.getString("key"), 32,
                0, Long.MAX_VALUE).getMessageList());
            case "pull": return pull(c);
            case "lite": return lite(c);
            case "poll": return poll(c);
            case "mqadmin": return mqadmin(c);
            default: return elsewhere(c);
        }
    }

    /** "Pop.receive" is the static method receive(JSONObject) of the class Pop beside this one. */
    static Object elsewhere(JSONObject c) throws Exception {
        String[] verb = c.getString("do").split("\\.");
        if (verb.length != 2) {
            throw new IllegalArgumentException("unknown verb " + c.getString("do"));
        }
        Method method = Class.forName(verb[0]).getDeclaredMethod(verb[1], JSONObject.class);
        try {
            return method.invoke(null, c);
        } catch (InvocationTargetException error) {
            throw error.getCause() instanceof Exception ? (Exception) error.getCause() : error;
        }
    }

    /** One client instance for each (server, name): the libraries share connections by instance name. */
    static <T extends ClientConfig> T configured(T client, JSONObject c, String name) {
        client.setNamesrvAddr(c.getString("namesrv"));
        client.setInstanceName(name + "@" + c.getString("namesrv"));
        client.setPollNameServerInterval(1000);
        client.setHeartbeatBrokerInterval(5000);
        client.setPersistConsumerOffsetInterval(1000);
        return client;
    }

    /** Signs requests for the account in our properties; its classes are in a jar of its own before 5.x. */
    static RPCHook hook() throws Exception {
        String accessKey = System.getProperty("peer.accessKey");
        if (accessKey == null) {
            return null;
        }
        Class<?> credentials = Class.forName("org.apache.rocketmq.acl.common.SessionCredentials");
        Object account = credentials.getConstructor(String.class, String.class)
            .newInstance(accessKey, System.getProperty("peer.secretKey"));
        return (RPCHook) Class.forName("org.apache.rocketmq.acl.common.AclClientRPCHook")
            .getConstructor(credentials).newInstance(account);
    }

    static DefaultMQProducer producer(JSONObject c) throws Exception {
        String namesrv = c.getString("namesrv");
        DefaultMQProducer known = PRODUCERS.get(namesrv);
        if (known == null) {
            // of its own for each process: replies go to the client id that asked
            String name = "producer" + ProcessHandle.current().pid();
            known = configured(new DefaultMQProducer("peer_producers", hook()), c, name);
            known.setSendMsgTimeout(10000);
            known.start();
            PRODUCERS.put(namesrv, known);
        }
        return known;
    }

    static MessageQueue queue(JSONObject c) {
        return new MessageQueue(c.getString("topic"), c.getString("broker"), c.getIntValue("queue"));
    }

    static Message message(String topic, JSONObject m) {
        Message message = new Message(topic, m.getString("tag"), m.getString("keys"), m.getBytes("body"));
        if (m.containsKey("delay")) {
            message.setDelayTimeLevel(m.getIntValue("delay"));
        }
        if (m.containsKey("properties")) {
            for (Map.Entry<String, Object> property : m.getJSONObject("properties").entrySet()) {
                message.putUserProperty(property.getKey(), property.getValue().toString());
            }
        }
        return message;
    }

    static Object send(JSONObject c) throws Exception {
        DefaultMQProducer producer = producer(c);
        List<Message> messages = new ArrayList<>();
        JSONArray raw = c.getJSONArray("messages");
        for (int i = 0; i < raw.size(); i++) {
            messages.add(message(c.getString("topic"), raw.getJSONObject(i)));
        }
        final JSONArray results = new JSONArray();
        switch (c.getString("how")) {
            case "batch":
                results.add(describe(producer.send(messages)));
                break;
            case "oneway":
                for (Message message : messages) {
                    producer.sendOneway(message);
                }
                break;
            case "async":
                final CountDownLatch open = new CountDownLatch(messages.size());
                for (Message message : messages) {
                    producer.send(message, new SendCallback() {
                        public void onSuccess(SendResult result) {
                            synchronized (results) {
                                results.add(describe(result));
                            }
                            open.countDown();
                        }

                        public void onException(Throwable error) {
                            synchronized (results) {
                                results.add(new JSONObject().fluentPut("error", error.toString()));
                            }
                            open.countDown();
                        }
                    });
                }
                if (!open.await(20, TimeUnit.SECONDS)) {
                    throw new IllegalStateException(open.getCount() + " async sends unanswered");
                }
                break;
            case "hash":
                for (int i = 0; i < messages.size(); i++) {
                    results.add(describe(producer.send(messages.get(i), new MessageQueueSelector() {
                        public MessageQueue select(List<MessageQueue> queues, Message message, Object key) {
                            return queues.get((key.hashCode() & 0x7fffffff) % queues.size());
                        }
                    }, raw.getJSONObject(i).getString("hash"))));
                }
                break;
            default:
                for (int i = 0; i < messages.size(); i++) {
                    JSONObject m = raw.getJSONObject(i);
                    SendResult result = m.containsKey("queue")
                        ? producer.send(messages.get(i), new MessageQueue(c.getString("topic"), m.getString("broker"),
                            m.getIntValue("queue")))
                        : producer.send(messages.get(i));
                    results.add(describe(result));
                }
        }
        return results;
    }

    static JSONObject describe(SendResult r) {
        return new JSONObject().fluentPut("status", r.getSendStatus().name()).fluentPut("message_id", r.getMsgId())
            .fluentPut("offset_message_id", r.getOffsetMsgId()).fluentPut("broker", r.getMessageQueue().getBrokerName())
            .fluentPut("queue", r.getMessageQueue().getQueueId()).fluentPut("queue_offset", r.getQueueOffset());
    }

    static JSONArray describe(List<MessageExt> messages) {
        JSONArray all = new JSONArray();
        if (messages != null) {
            for (MessageExt message : messages) {
                all.add(describe(message));
            }
        }
        return all;
    }

    static JSONObject describe(MessageExt m) {
        return new JSONObject().fluentPut("topic", m.getTopic()).fluentPut("message_id", m.getMsgId())
            .fluentPut("body", Base64.getEncoder().encodeToString(m.getBody())).fluentPut("tag", m.getTags())
            .fluentPut("keys", m.getKeys()).fluentPut("queue", m.getQueueId()).fluentPut("broker", m.getBrokerName())
            .fluentPut("queue_offset", m.getQueueOffset()).fluentPut("reconsume_times", m.getReconsumeTimes())
            .fluentPut("properties", new TreeMap<String, String>(m.getProperties()))
            .fluentPut("born", m.getBornTimestamp()).fluentPut("stored", m.getStoreTimestamp())
            .fluentPut("sys_flag", m.getSysFlag()).fluentPut("physical_offset", m.getCommitLogOffset());
    }

    static void received(String name, MessageExt message) {
        say(describe(message).fluentPut("event", "message").fluentPut("consumer", name)
            .fluentPut("now", System.currentTimeMillis()));
    }

    /** The two client lines keep MessageModel in different packages; its setter is the same. */
    static void setModel(DefaultMQPushConsumer consumer, String model) throws Exception {
        for (Method method : DefaultMQPushConsumer.class.getMethods()) {
            if (method.getName().equals("setMessageModel")) {
                for (Object value : method.getParameterTypes()[0].getEnumConstants()) {
                    if (value.toString().equals(model)) {
                        method.invoke(consumer, value);
                    }
                }
            }
        }
    }

    static MessageSelector selector(JSONObject c) {
        return c.containsKey("sql") ? MessageSelector.bySql(c.getString("sql"))
            : MessageSelector.byTag(c.containsKey("expression") ? c.getString("expression") : "*");
    }

    static Object consume(final JSONObject c) throws Exception {
        final String name = c.getString("name");
        final int failures = c.getIntValue("fail");
        DefaultMQPushConsumer consumer = configured(new DefaultMQPushConsumer(c.getString("group"), hook(), new AllocateMessageQueueAveragely()), c, name);
        setModel(consumer, c.getBooleanValue("broadcast") ? "BROADCASTING" : "CLUSTERING");
        consumer.setConsumeFromWhere(c.getBooleanValue("last") ? ConsumeFromWhere.CONSUME_FROM_LAST_OFFSET
            : ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.setMaxReconsumeTimes(c.containsKey("max_reconsume") ? c.getIntValue("max_reconsume") : -1);
        consumer.setAwaitTerminationMillisWhenShutdown(10000); // or what listeners are at is not committed at the stop
        consumer.subscribe(c.getString("topic"), selector(c));
        if (c.getBooleanValue("orderly")) {
            consumer.registerMessageListener((MessageListenerOrderly) (messages, context) -> {
                boolean failed = false;
                for (MessageExt message : messages) {
                    received(name, message);
                    failed |= message.getReconsumeTimes() < failures;
                }
                context.setSuspendCurrentQueueTimeMillis(100);
                return failed ? ConsumeOrderlyStatus.SUSPEND_CURRENT_QUEUE_A_MOMENT : ConsumeOrderlyStatus.SUCCESS;
            });
        } else {
            consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
                boolean failed = false;
                for (MessageExt message : messages) {
                    received(name, message);
                    failed |= message.getReconsumeTimes() < failures;
                }
                context.setDelayLevelWhenNextConsume(1);
                return failed ? ConsumeConcurrentlyStatus.RECONSUME_LATER : ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
            });
        }
        consumer.start();
        CONSUMERS.put(name, consumer);
        return true;
    }

    static Object stop(JSONObject c) {
        DefaultMQPushConsumer consumer = CONSUMERS.remove(c.getString("name"));
        if (consumer == null) {
            throw new IllegalArgumentException("no consumer " + c.getString("name"));
        }
        consumer.shutdown();
        return true;
    }

    static Object queues(JSONObject c) throws Exception {
        DefaultMQProducer producer = producer(c);
        JSONArray all = new JSONArray();
        for (MessageQueue queue : new TreeSet<>(producer.fetchPublishMessageQueues(c.getString("topic")))) {
            all.add(new JSONObject().fluentPut("broker", queue.getBrokerName()).fluentPut("queue", queue.getQueueId())
                .fluentPut("min", producer.minOffset(queue)).fluentPut("max", producer.maxOffset(queue))
                .fluentPut("earliest", producer.earliestMsgStoreTime(queue)));
        }
        return all;
    }

    static Object pull(JSONObject c) throws Exception {
        DefaultMQPullConsumer puller = PULLERS.get(c.getString("namesrv"));
        if (puller == null) {
            puller = configured(new DefaultMQPullConsumer("peer_pullers"), c, "puller");
            puller.start();
            PULLERS.put(c.getString("namesrv"), puller);
        }
        PullResult result = puller.pull(queue(c), c.containsKey("expression") ? c.getString("expression") : "*",
            c.getLongValue("offset"), c.containsKey("max") ? c.getIntValue("max") : 32);
        return new JSONObject().fluentPut("status", result.getPullStatus().name())
            .fluentPut("next", result.getNextBeginOffset()).fluentPut("min", result.getMinOffset())
            .fluentPut("max", result.getMaxOffset()).fluentPut("messages", describe(result.getMsgFoundList()));
    }

    /** Assigns one queue, seeks when an offset is given, polls until `count` messages are there, and commits. */
    static Object lite(JSONObject c) throws Exception {
        MessageQueue queue = queue(c);
        DefaultLitePullConsumer consumer = configured(new DefaultLitePullConsumer(c.getString("group"), hook()), c, c.getString("group"));
        consumer.setAutoCommit(false);
        consumer.setPullBatchSize(32);
        consumer.start();
        try {
            consumer.assign(Collections.singletonList(queue));
            if (c.containsKey("offset")) {
                // A pull from elsewhere may be under way, and 4.9 lets its answer through after a seek.
                consumer.pause(Collections.singletonList(queue));
                consumer.poll(500);
                consumer.resume(Collections.singletonList(queue));
                consumer.seek(queue, c.getLongValue("offset"));
            }
            List<MessageExt> found = new ArrayList<>();
            long deadline = System.currentTimeMillis() + 20000;
            while (found.size() < c.getIntValue("count") && System.currentTimeMillis() < deadline) {
                found.addAll(consumer.poll(500));
            }
            consumer.commitSync();
            return new JSONObject().fluentPut("messages", describe(found)).fluentPut("committed", consumer.committed(queue));
        } finally {
            consumer.shutdown();
        }
    }

    /** Subscribes with a pull consumer, takes `count` messages, commits, and leaves the group. */
    static Object poll(JSONObject c) throws Exception {
        DefaultLitePullConsumer consumer = configured(new DefaultLitePullConsumer(c.getString("group"), hook()), c, c.getString("group"));
        consumer.setAutoCommit(false);
        consumer.setConsumeFromWhere(ConsumeFromWhere.CONSUME_FROM_FIRST_OFFSET);
        consumer.subscribe(c.getString("topic"), selector(c));
        consumer.start();
        try {
            List<MessageExt> found = new ArrayList<>();
            long deadline = System.currentTimeMillis() + 40000;
            while (found.size() < c.getIntValue("count") && System.currentTimeMillis() < deadline) {
                found.addAll(consumer.poll(500));
            }
            consumer.commitSync();
            return new JSONObject().fluentPut("messages", describe(found));
        } finally {
            consumer.shutdown();
        }
    }

    /** Where a client ends, it waits up to 3 seconds for a thread of its own to notice: wakes that. Started once. */
    static void hurry() {
        if (hurrying) {
            return;
        }
        hurrying = true;
        Thread main = Thread.currentThread();
        Thread waker = new Thread(() -> {
            while (true) {
                for (Thread thread : Thread.getAllStackTraces().keySet()) {
                    // not before: it sends requests too
                    if (thread.getName().contains("NettyEventExecutor") && ends(main)) {
                        thread.interrupt();
                    }
                }
                try {
                    Thread.sleep(50);
                } catch (InterruptedException end) {
                    return;
                }
            }
        });
        waker.setDaemon(true);
        waker.start();
    }

    static boolean ends(Thread thread) {
        for (StackTraceElement frame : thread.getStackTrace()) {
            if (frame.getMethodName().equals("shutdown") && frame.getClassName().endsWith(".ServiceThread")) {
                return true;
            }
        }
        return false;
    }

    /** Runs mqadmin (only on the server's class path) and gives what it prints. */
    static Object mqadmin(JSONObject c) throws Exception {
        System.setProperty("rocketmq.namesrv.addr", c.getString("namesrv"));
        Class<?> startup = Class.forName("org.apache.rocketmq.tools.command.MQAdminStartup");
        Field commands = startup.getDeclaredField("SUB_COMMANDS");
        commands.setAccessible(true);
        ((List<?>) commands.get(null)).clear(); // some of them work once only; main0 makes new ones
        Method main = null;
        for (Method method : startup.getMethods()) {
            if (method.getName().equals("main0")) {
                main = method;
            }
        }
        hurry();
        ByteArrayOutputStream printed = new ByteArrayOutputStream();
        PrintStream before = System.out;
        System.setOut(new PrintStream(printed, true, "UTF-8"));
        try {
            main.invoke(null, c.getObject("arguments", String[].class), null);
        } finally {
            System.setOut(before);
        }
        return printed.toString("UTF-8");
    }
}
