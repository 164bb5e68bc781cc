// The Go client on a string: one JSON object a line comes in ("do" names the verb), one JSON object a line goes out
// with the same "id"; what consumers receive goes out in between as {"event": "message"}. Bodies are base64.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"

	rocketmq "github.com/apache/rocketmq-client-go/v2"
	"github.com/apache/rocketmq-client-go/v2/consumer"
	"github.com/apache/rocketmq-client-go/v2/primitive"
	"github.com/apache/rocketmq-client-go/v2/producer"
	"github.com/apache/rocketmq-client-go/v2/rlog"
)

type outgoing struct {
	Body       []byte            `json:"body"`
	Tag        string            `json:"tag"`
	Keys       string            `json:"keys"`
	Delay      int               `json:"delay"`
	Hash       string            `json:"hash"`
	Properties map[string]string `json:"properties"`
}

type command struct {
	ID           int        `json:"id"`
	Do           string     `json:"do"`
	Namesrv      string     `json:"namesrv"`
	Topic        string     `json:"topic"`
	How          string     `json:"how"`
	Messages     []outgoing `json:"messages"`
	Name         string     `json:"name"`
	Group        string     `json:"group"`
	Expression   string     `json:"expression"`
	Broadcast    bool       `json:"broadcast"`
	Orderly      bool       `json:"orderly"`
	Last         bool       `json:"last"`
	Fail         int32      `json:"fail"`
	MaxReconsume *int32     `json:"max_reconsume"`
	Count        int        `json:"count"`
}

type object map[string]any

var (
	saying    sync.Mutex
	producers = map[string]rocketmq.Producer{}
	consumers = map[string]rocketmq.PushConsumer{}
)

func say(line object) {
	text, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	saying.Lock()
	defer saying.Unlock()
	fmt.Println(string(text))
}

func main() {
	rlog.SetLogLevel("error")
	say(object{"event": "ready"})
	in := bufio.NewReader(os.Stdin)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			break
		}
		var c command
		if err := json.Unmarshal(line, &c); err != nil {
			panic(err)
		}
		result, err := run(c)
		if err != nil {
			say(object{"id": c.ID, "error": err.Error()})
		} else {
			say(object{"id": c.ID, "result": result})
		}
	}
	for _, one := range consumers {
		one.Shutdown()
	}
}

func run(c command) (any, error) {
	switch c.Do {
	case "send":
		return send(c)
	case "consume":
		return true, consume(c)
	case "stop":
		one, known := consumers[c.Name]
		if !known {
			return nil, fmt.Errorf("no consumer %s", c.Name)
		}
		delete(consumers, c.Name)
		return true, one.Shutdown()
	case "poll":
		return poll(c)
	}
	return nil, fmt.Errorf("unknown verb %s", c.Do)
}

// credentials are the account to sign requests for, if our environment names one.
func credentials() (primitive.Credentials, bool) {
	accessKey, ok := os.LookupEnv("PEER_ACCESS_KEY")
	return primitive.Credentials{AccessKey: accessKey, SecretKey: os.Getenv("PEER_SECRET_KEY")}, ok
}

// producerFor gives one producer for each server and way of choosing queues (the library fixes it at start).
func producerFor(c command) (rocketmq.Producer, error) {
	key := c.Namesrv
	selector := producer.NewRoundRobinQueueSelector()
	if c.How == "hash" {
		key += " hash"
		selector = producer.NewHashQueueSelector()
	}
	if known, ok := producers[key]; ok {
		return known, nil
	}
	options := []producer.Option{
		producer.WithNsResolver(primitive.NewPassthroughResolver([]string{c.Namesrv})),
		producer.WithGroupName("peer_producers_go"+c.How),
		producer.WithInstanceName("producer@"+key),
		producer.WithSendMsgTimeout(10*time.Second),
		producer.WithRetry(2),
		producer.WithQueueSelector(selector),
	}
	if account, ok := credentials(); ok {
		options = append(options, producer.WithCredentials(account))
	}
	one, err := rocketmq.NewProducer(options...)
	if err != nil {
		return nil, err
	}
	if err := one.Start(); err != nil {
		return nil, err
	}
	producers[key] = one
	return one, nil
}

func send(c command) (any, error) {
	one, err := producerFor(c)
	if err != nil {
		return nil, err
	}
	var messages []*primitive.Message
	for _, m := range c.Messages {
		message := primitive.NewMessage(c.Topic, m.Body)
		if m.Tag != "" {
			message.WithTag(m.Tag)
		}
		if m.Keys != "" {
			message.WithKeys([]string{m.Keys})
		}
		if m.Delay != 0 {
			message.WithDelayTimeLevel(m.Delay)
		}
		if m.Hash != "" {
			message.WithShardingKey(m.Hash)
		}
		for name, value := range m.Properties {
			message.WithProperty(name, value)
		}
		messages = append(messages, message)
	}
	ctx := context.Background()
	results := []object{}
	switch c.How {
	case "batch":
		result, err := one.SendSync(ctx, messages...)
		if err != nil {
			return nil, err
		}
		results = append(results, describeResult(result))
	case "oneway":
		for _, message := range messages {
			if err := one.SendOneWay(ctx, message); err != nil {
				return nil, err
			}
		}
	case "async":
		var collecting sync.Mutex
		var open sync.WaitGroup
		for _, message := range messages {
			open.Add(1)
			err := one.SendAsync(ctx, func(_ context.Context, result *primitive.SendResult, err error) {
				collecting.Lock()
				if err != nil {
					results = append(results, object{"error": err.Error()})
				} else {
					results = append(results, describeResult(result))
				}
				collecting.Unlock()
				open.Done()
			}, message)
			if err != nil {
				return nil, err
			}
		}
		open.Wait()
	default:
		for _, message := range messages {
			result, err := one.SendSync(ctx, message)
			if err != nil {
				return nil, err
			}
			results = append(results, describeResult(result))
		}
	}
	return results, nil
}

func describeResult(r *primitive.SendResult) object {
	status := fmt.Sprintf("status %d", r.Status)
	if r.Status == primitive.SendOK {
		status = "SEND_OK"
	}
	return object{"status": status, "message_id": r.MsgID, "offset_message_id": r.OffsetMsgID,
		"broker": r.MessageQueue.BrokerName, "queue": r.MessageQueue.QueueId, "queue_offset": r.QueueOffset}
}

func describe(m *primitive.MessageExt) object {
	queue, broker := 0, ""
	if m.Queue != nil {
		queue, broker = m.Queue.QueueId, m.Queue.BrokerName
	}
	return object{"topic": m.Topic, "message_id": m.MsgId, "body": m.Body, "tag": m.GetTags(), "keys": m.GetKeys(),
		"queue": queue, "broker": broker, "queue_offset": m.QueueOffset, "reconsume_times": m.ReconsumeTimes,
		"properties": m.GetProperties(), "born": m.BornTimestamp, "stored": m.StoreTimestamp,
		"sys_flag": m.SysFlag, "physical_offset": m.CommitLogOffset}
}

func consumerOptions(c command) []consumer.Option {
	model, from := consumer.Clustering, consumer.ConsumeFromFirstOffset
	if c.Broadcast {
		model = consumer.BroadCasting
	}
	if c.Last {
		from = consumer.ConsumeFromLastOffset
	}
	options := []consumer.Option{
		consumer.WithNsResolver(primitive.NewPassthroughResolver([]string{c.Namesrv})),
		consumer.WithGroupName(c.Group),
		consumer.WithInstance(c.Name + "@" + c.Namesrv),
		consumer.WithConsumerModel(model),
		consumer.WithConsumeFromWhere(from),
		consumer.WithConsumerOrder(c.Orderly),
		consumer.WithSuspendCurrentQueueTimeMillis(100 * time.Millisecond),
	}
	if account, ok := credentials(); ok {
		options = append(options, consumer.WithCredentials(account))
	}
	if c.MaxReconsume != nil {
		options = append(options, consumer.WithMaxReconsumeTimes(*c.MaxReconsume))
	}
	return options
}

func selectorFor(c command) consumer.MessageSelector {
	if c.Expression == "" {
		return consumer.MessageSelector{}
	}
	return consumer.MessageSelector{Type: consumer.TAG, Expression: c.Expression}
}

func consume(c command) error {
	one, err := rocketmq.NewPushConsumer(consumerOptions(c)...)
	if err != nil {
		return err
	}
	err = one.Subscribe(c.Topic, selectorFor(c), func(ctx context.Context, messages ...*primitive.MessageExt) (consumer.ConsumeResult, error) {
		failed := false
		for _, message := range messages {
			line := describe(message)
			line["event"], line["consumer"], line["now"] = "message", c.Name, time.Now().UnixMilli()
			say(line)
			failed = failed || message.ReconsumeTimes < c.Fail
		}
		if !failed {
			return consumer.ConsumeSuccess, nil
		}
		if c.Orderly {
			return consumer.SuspendCurrentQueueAMoment, nil
		}
		if concurrently, ok := primitive.GetConcurrentlyCtx(ctx); ok {
			concurrently.DelayLevelWhenNextConsume = 1
		}
		return consumer.ConsumeRetryLater, nil
	})
	if err != nil {
		return err
	}
	if err := one.Start(); err != nil {
		return err
	}
	consumers[c.Name] = one
	return nil
}

// poll subscribes with a pull consumer, takes `count` messages, acknowledges them, and leaves the group.
func poll(c command) (any, error) {
	one, err := rocketmq.NewPullConsumer(append(consumerOptions(c), consumer.WithPullBatchSize(8))...)
	if err != nil {
		return nil, err
	}
	if err := one.Subscribe(c.Topic, selectorFor(c)); err != nil {
		return nil, err
	}
	if err := one.Start(); err != nil {
		return nil, err
	}
	defer one.Shutdown()
	ctx := context.Background()
	found := []object{}
	for deadline := time.Now().Add(40 * time.Second); len(found) < c.Count && time.Now().Before(deadline); {
		request, err := one.Poll(ctx, time.Second)
		if consumer.IsNoNewMsgError(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, message := range request.GetMsgList() {
			found = append(found, describe(message))
		}
		one.ACK(ctx, request, consumer.ConsumeSuccess)
	}
	return object{"messages": found}, nil
}
