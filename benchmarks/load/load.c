/* A lean load generator for brokers that speak RocketMQ's remoting protocol.
 *
 *   cc -O2 -o load load.c && ./load send --port 10911 --connections 4 --in-flight 64 --seconds 5
 *
 * The same binary drives every broker of a comparison, and costs so little per message that it is the broker that is
 * measured: one thread, one epoll, requests are memcpy'd from a prepared frame with a few bytes patched, every
 * wake-up reads once, handles all answers that came, and writes once. It talks to one broker directly (no NameServer,
 * no heartbeats) and prints one line of JSON.
 *
 *   send    C connections with W requests in flight each; --batch B sends batches of B (code 320), --topics T spreads
 *           over T topics. One connection with one in flight gives the latency of a synchronous producer. --delay-ms D or
 *           --deliver-at MS (since the epoch) makes them timer messages; e2e takes --delay-ms as well.
 *   pull    reads the topic's queues from offset 0 to their end, one pull in flight per queue as real consumers do,
 *           and checks every record: magic, body length, consecutive queue offsets.
 *   pop     C connections with W pops of up to --max-pull in flight each, and a batch acknowledgement for every answer, until
 *           --count messages are acknowledged; checks every record, and that none comes twice. JSON headers.
 *   e2e     a paced sender (R messages a second) and a consumer with long-polling pulls; latency counts from the
 *           moment a message was due until it was received, so a stall is not hidden by the sender waiting too; one that
 *           comes before its time ends the run.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { SEND_V2 = 310, SEND_BATCH = 320, PULL = 11, CREATE_TOPIC = 17, CREATE_TOPICS = 18 };
enum { POP = 200050, BATCH_ACK = 200151 };
enum { FOUND = 0, NOT_SUPPORTED = 3, PULL_NOT_FOUND = 19, PULL_RETRY = 20, PULL_MOVED = 21, POP_FULL = 209, POP_NOTHING = 210 };
enum { MAX_CONNECTIONS = 256, MAX_QUEUES = 64, MAX_IN_FLIGHT = 1 << 14, FIRST_OPAQUE = 1 << 30 };

static struct options {
    const char *mode, *host, *header, *topic, *group, *broker;
    long port, connections, in_flight, size, count, topics, queues, batch, rate, max_pull, suspend_ms, create, delay_ms,
        deliver_at;
    double seconds, skip;
} opt = {.host = "127.0.0.1", .header = "json", .topic = "Bench", .group = "bench_load", .broker = "",
         .connections = 1,
         .in_flight = 1, .size = 1024, .topics = 1, .queues = 4, .batch = 1, .rate = 2000, .max_pull = 32,
         .suspend_ms = 15000, .create = 1, .seconds = 5};

static void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t wall_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000u + (uint64_t)t.tv_nsec / 1000000u;
}

static void put32(uint8_t *p, uint32_t v) { v = htonl(v); memcpy(p, &v, 4); }
static uint32_t get32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return ntohl(v); }
static uint64_t get64(const uint8_t *p) { return (uint64_t)get32(p) << 32 | get32(p + 4); }

/* ---- latency histogram: buckets of 1/128 of a power of two, so a value is known to better than 1 % ---- */

static uint32_t histogram[64 * 128];
static uint64_t samples, worst;

static void sample(uint64_t ns) {
    int shift = ns < 256 ? 0 : 56 - __builtin_clzll(ns);
    histogram[(shift << 7) + (ns >> shift)]++;
    samples++;
    if (ns > worst) worst = ns;
}

static double percentile_us(double share) {
    uint64_t left = (uint64_t)(share * (double)samples) + 1;
    for (size_t i = 0; i < sizeof histogram / sizeof *histogram; i++) {
        if (histogram[i] >= left) {
            int shift = i < 256 ? 0 : (int)(i >> 7) - 1;
            return (double)((i - ((size_t)shift << 7)) << shift) / 1000.0;
        }
        left -= histogram[i];
    }
    return (double)worst / 1000.0;
}

/* ---- frames: built once with the fields in place, then patched at the remembered positions ---- */

struct frame {
    uint8_t *bytes;
    size_t length, capacity, header_start, ext_start;
    int fields;
    size_t opaque; /* where the correlation number is: ten digits or four bytes */
};

static int binary(void) { return opt.header[0] == 'b'; }

static size_t add(struct frame *f, const void *data, size_t length) {
    if (f->length + length > f->capacity)
        f->bytes = realloc(f->bytes, f->capacity = 2 * (f->length + length));
    if (length) memcpy(f->bytes + f->length, data, length);
    f->length += length;
    return f->length - length;
}

static size_t text(struct frame *f, const char *s) { return add(f, s, strlen(s)); }

static void begin(struct frame *f, int code) {
    static const uint8_t zeros[8];
    f->length = 0;
    f->fields = 0;
    add(f, zeros, 8);
    f->header_start = f->length;
    if (binary()) {
        uint8_t fixed[21] = {(uint8_t)(code >> 8), (uint8_t)code, 0, 493 >> 8, 493 & 255};
        add(f, fixed, 21); /* code, language JAVA, version, opaque, flag, no remark, length of ext */
        f->opaque = f->header_start + 5;
        f->ext_start = f->length;
    } else {
        char head[40];
        snprintf(head, sizeof head, "{\"code\":%d,\"extFields\":{", code);
        text(f, head);
    }
}

/* Adds one extFields entry and returns where its value starts. \1 and \2 (property separators) are escaped in JSON. */
static size_t field(struct frame *f, const char *key, const char *value) {
    size_t key_length = strlen(key), length = strlen(value), at;
    if (binary()) {
        uint8_t n[4] = {(uint8_t)(key_length >> 8), (uint8_t)key_length};
        add(f, n, 2);
        add(f, key, key_length);
        put32(n, (uint32_t)length);
        add(f, n, 4);
        return add(f, value, length);
    }
    text(f, f->fields++ ? ",\"" : "\"");
    text(f, key);
    text(f, "\":\"");
    at = f->length;
    for (; *value; value++) {
        char escaped[8];
        if ((uint8_t)*value < 32) {
            snprintf(escaped, sizeof escaped, "\\u%04x", *value);
            text(f, escaped);
        } else add(f, value, 1);
    }
    text(f, "\"");
    return at;
}

static size_t number(struct frame *f, const char *key, long long value) {
    char digits[24];
    snprintf(digits, sizeof digits, "%lld", value);
    return field(f, key, digits);
}

/* Closes the header; what is added afterwards is the body, then finish() fills in the lengths. */
static size_t close_header(struct frame *f) {
    if (binary()) put32(f->bytes + f->ext_start - 4, (uint32_t)(f->length - f->ext_start));
    else {
        text(f, "},\"flag\":0,\"language\":\"JAVA\",\"opaque\":");
        f->opaque = text(f, "1073741824");
        text(f, ",\"serializeTypeCurrentRPC\":\"JSON\",\"version\":493}");
    }
    put32(f->bytes + 4, (uint32_t)(f->length - f->header_start) | (uint32_t)binary() << 24);
    return f->length;
}

static void finish(struct frame *f) { put32(f->bytes, (uint32_t)f->length - 4); }

static void decimal(uint8_t *at, uint64_t value, int digits) {
    while (digits--) { at[digits] = (uint8_t)('0' + value % 10); value /= 10; }
}

static void set_opaque(uint8_t *frame, size_t at, uint32_t opaque) {
    if (binary()) put32(frame + at, opaque);
    else decimal(frame + at, opaque, 10);
}

/* ---- connections ---- */

struct connection {
    int fd, index, waiting_to_write;
    uint8_t *in, *out;
    size_t in_start, in_end, in_size, out_start, out_end, out_size;
    uint32_t next_opaque;
    uint64_t *sent_at; /* by opaque modulo MAX_IN_FLIGHT */
};

struct answer {
    int code;
    uint32_t opaque;
    const uint8_t *header, *body;
    size_t header_length, body_length;
};

static struct connection connections[MAX_CONNECTIONS];
static int epoll;

static void open_connection(struct connection *c, int index) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)opt.port)};
    int one = 1;
    memset(c, 0, sizeof *c);
    c->index = index;
    if (inet_pton(AF_INET, opt.host, &address.sin_addr) != 1) die("%s is not an IPv4 address", opt.host);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address))
        die("cannot connect to %s:%ld: %s", opt.host, opt.port, strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    c->in = malloc(c->in_size = 1 << 20);
    c->out = malloc(c->out_size = 1 << 20);
    c->next_opaque = FIRST_OPAQUE;
    c->sent_at = calloc(MAX_IN_FLIGHT, sizeof *c->sent_at);
    epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &(struct epoll_event){.events = EPOLLIN, .data.ptr = c});
}

static uint8_t *reserve(struct connection *c, size_t length) {
    if (c->out_start == c->out_end) c->out_start = c->out_end = 0;
    if (c->out_end + length > c->out_size) c->out = realloc(c->out, c->out_size = 2 * (c->out_end + length));
    c->out_end += length;
    return c->out + c->out_end - length;
}

/* Copies a prepared frame into the output with a fresh opaque; returns the copy for further patches. */
static uint8_t *request(struct connection *c, const struct frame *f, uint64_t now) {
    uint8_t *copy = reserve(c, f->length);
    memcpy(copy, f->bytes, f->length);
    set_opaque(copy, f->opaque, c->next_opaque);
    c->sent_at[c->next_opaque++ % MAX_IN_FLIGHT] = now;
    return copy;
}

static void flush_out(struct connection *c) {
    while (c->out_start < c->out_end) {
        ssize_t n = write(c->fd, c->out + c->out_start, c->out_end - c->out_start);
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) die("connection %d: write: %s", c->index, strerror(errno));
        c->out_start += (size_t)n;
    }
    int waiting = c->out_start < c->out_end;
    if (waiting != c->waiting_to_write) {
        c->waiting_to_write = waiting;
        epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd,
                  &(struct epoll_event){.events = EPOLLIN | (waiting ? EPOLLOUT : 0), .data.ptr = c});
    }
}

static void read_in(struct connection *c) {
    size_t have = c->in_end - c->in_start;
    if (c->in_start && c->in_end == c->in_size) {
        memmove(c->in, c->in + c->in_start, have);
        c->in_start = 0;
        c->in_end = have;
    }
    if (c->in_end == c->in_size) c->in = realloc(c->in, c->in_size *= 2);
    ssize_t n = read(c->fd, c->in + c->in_end, c->in_size - c->in_end);
    if (n == 0) die("connection %d: closed by the broker", c->index);
    if (n < 0 && errno != EAGAIN) die("connection %d: read: %s", c->index, strerror(errno));
    if (n > 0) c->in_end += (size_t)n;
}

/* The integer after `key` in a header, text or binary: the first digits that follow it. */
static long long value_of(const uint8_t *header, size_t length, const char *key, long long absent) {
    const uint8_t *end = header + length, *p = memmem(header, length, key, strlen(key));
    if (!p) return absent;
    p += strlen(key);
    while (p < end && *p != '-' && (*p < '0' || *p > '9')) p++;
    int negative = p < end && *p == '-';
    long long value = 0;
    for (p += negative; p < end && *p >= '0' && *p <= '9'; p++) value = value * 10 + (*p - '0');
    return negative ? -value : value;
}

/* Takes the next whole frame out of the input; 0 when there is none. */
static int next_answer(struct connection *c, struct answer *a) {
    size_t have = c->in_end - c->in_start;
    const uint8_t *p = c->in + c->in_start;
    if (have < 8) {
        if (!have) c->in_start = c->in_end = 0;
        return 0;
    }
    size_t length = get32(p);
    if (have < length + 4) {
        if (length + 4 > c->in_size) c->in = realloc(c->in, c->in_size = length + 4);
        if (c->in_start + length + 4 > c->in_size) {
            memmove(c->in, c->in + c->in_start, have);
            c->in_start = 0;
            c->in_end = have;
        }
        return 0;
    }
    a->header = p + 8;
    a->header_length = get32(p + 4) & 0xffffff;
    a->body = a->header + a->header_length;
    a->body_length = length - 4 - a->header_length;
    if (p[4] == 1) {
        a->code = (int16_t)(a->header[0] << 8 | a->header[1]);
        a->opaque = get32(a->header + 5);
    } else {
        a->code = (int)value_of(a->header, a->header_length, "\"code\":", -1);
        a->opaque = (uint32_t)value_of(a->header, a->header_length, "\"opaque\":", 0);
    }
    c->in_start += length + 4;
    return 1;
}

static void show_error(const struct answer *a, const char *what) {
    fprintf(stderr, "load: %s answered with code %d: %.*s\n", what, a->code, (int)a->header_length, a->header);
}

/* ---- topics ---- */

static char (*topics)[96];

static void answer_to(struct connection *c, struct answer *a) { /* blocking, for the few requests before the run */
    flush_out(c);
    while (!next_answer(c, a)) {
        struct epoll_event event;
        if (epoll_wait(epoll, &event, 1, 60000) == 0) die("no answer from the broker within 60 s");
        if (c->waiting_to_write) flush_out(c);
        read_in(c);
    }
}

static void create_topic(struct connection *c, const char *topic) {
    struct frame f = {0};
    struct answer a;
    begin(&f, CREATE_TOPIC);
    field(&f, "defaultTopic", "TBW102");
    field(&f, "order", "false");
    number(&f, "perm", 6);
    number(&f, "readQueueNums", opt.queues);
    field(&f, "topic", topic);
    field(&f, "topicFilterType", "SINGLE_TAG");
    number(&f, "topicSysFlag", 0);
    number(&f, "writeQueueNums", opt.queues);
    close_header(&f);
    finish(&f);
    request(c, &f, 0);
    answer_to(c, &a);
    if (a.code) show_error(&a, topic), exit(1);
    free(f.bytes);
}

static void create_topics(struct connection *c) {
    topics = calloc((size_t)opt.topics, sizeof *topics);
    for (long i = 0; i < opt.topics; i++) /* all names of one length, so that they fit the same place in the frame */
        if (opt.topics == 1) snprintf(topics[i], sizeof *topics, "%s", opt.topic);
        else snprintf(topics[i], sizeof *topics, "%.64s_%06ld", opt.topic, i);
    if (!opt.create) return;
    if (opt.topics == 1) { create_topic(c, topics[0]); return; }
    struct frame f = {0};
    struct answer a;
    begin(&f, CREATE_TOPICS);
    close_header(&f);
    text(&f, "{\"topicConfigList\":[");
    for (long i = 0; i < opt.topics; i++) {
        char item[256];
        snprintf(item, sizeof item,
                 "%s{\"attributes\":{},\"order\":false,\"perm\":6,\"readQueueNums\":%ld,\"topicFilterType\":"
                 "\"SINGLE_TAG\",\"topicName\":\"%s\",\"topicSysFlag\":0,\"writeQueueNums\":%ld}",
                 i ? "," : "", opt.queues, topics[i], opt.queues);
        text(&f, item);
    }
    text(&f, "]}");
    finish(&f);
    request(c, &f, 0);
    answer_to(c, &a);
    if (a.code == NOT_SUPPORTED)
        for (long i = 0; i < opt.topics; i++) create_topic(c, topics[i]);
    else if (a.code) show_error(&a, "creating topics"), exit(1);
    free(f.bytes);
}

/* ---- sending ---- */

/* A SEND_MESSAGE_V2 (or batch) frame as a Java producer writes it, and the places that differ per message. */
static struct {
    struct frame frame;
    size_t topic, queue, born, unique, deliver, body;
} message;

static const char UNIQUE[] = "7F000001123418B4AAC2000000000000"; /* the last eight digits count */

static const char DELIVER[] = "TIMER_DELIVER_MS";

static void properties_into(char *out, size_t size) {
    int n = snprintf(out, size, "UNIQ_KEY\1%s\2WAIT\1true\2TAGS\1TagA\2", UNIQUE);
    if (opt.delay_ms || opt.deliver_at)
        snprintf(out + n, size - (size_t)n, "%s\1%013ld\2", DELIVER, opt.deliver_at);
}

static void prepare_message(void) {
    struct frame *f = &message.frame;
    char properties[128];
    properties_into(properties, sizeof properties);
    begin(f, opt.batch > 1 ? SEND_BATCH : SEND_V2);
    field(f, "a", opt.group);
    message.topic = field(f, "b", topics[0]);
    field(f, "c", "TBW102");
    number(f, "d", 4);
    message.queue = field(f, "e", opt.queues > 10 ? "00" : "0");
    number(f, "f", 0);
    message.born = number(f, "g", 1000000000000);
    number(f, "h", 0);
    size_t at = field(f, "i", properties);
    message.unique = at + (binary() ? 9 : 14) + strlen(UNIQUE) - 8; /* after `UNIQ_KEY` and its separator */
    number(f, "j", 0);
    field(f, "k", "false");
    field(f, "m", opt.batch > 1 ? "true" : "false");
    message.body = close_header(f);
    if (opt.delay_ms) { /* its 13 digits end before the last separator */
        uint8_t *name = memmem(f->bytes + at, f->length - at, DELIVER, strlen(DELIVER));
        message.deliver = (size_t)(name - f->bytes) + strlen(DELIVER) + (binary() ? 1 : 6);
    }
    size_t property_length = strlen(properties), size = (size_t)opt.size;
    uint8_t *body = malloc(size + 1), n[20] = {0};
    for (size_t i = 0; i < size; i++) body[i] = (uint8_t)('a' + i % 26);
    if (opt.batch > 1) {
        for (long i = 0; i < opt.batch; i++) {
            put32(n, (uint32_t)(22 + size + property_length));
            put32(n + 16, (uint32_t)size);
            add(f, n, 20);
            add(f, body, size);
            add(f, (uint8_t[]){(uint8_t)(property_length >> 8), (uint8_t)property_length}, 2);
            add(f, properties, property_length);
        }
    } else add(f, body, size);
    finish(f);
    free(body);
}

static void hex8(uint8_t *at, uint32_t value) {
    for (int i = 7; i >= 0; i--, value >>= 4) at[i] = (uint8_t)"0123456789ABCDEF"[value & 15];
}

/* Puts the next message (or batch) into the output. The queue moves on when all topics had their turn. */
static void send_message(struct connection *c, uint64_t now, uint64_t born_ms, uint64_t due) {
    static uint64_t turn;
    static uint32_t unique;
    if (!unique) unique = (uint32_t)now; /* another start in every run */
    uint8_t *copy = request(c, &message.frame, now);
    uint64_t topic = turn % (uint64_t)opt.topics, queue = turn / (uint64_t)opt.topics % (uint64_t)opt.queues;
    turn++;
    if (opt.topics > 1) memcpy(copy + message.topic, topics[topic], strlen(topics[0]));
    decimal(copy + message.queue, queue, opt.queues > 10 ? 2 : 1);
    decimal(copy + message.born, born_ms, 13);
    hex8(copy + message.unique, unique++);
    if (opt.delay_ms) decimal(copy + message.deliver, born_ms + (uint64_t)opt.delay_ms, 13);
    if (due && opt.size >= 8) memcpy(copy + message.body, &due, 8);
    if (opt.batch > 1) {
        size_t item = get32(copy + message.body);
        size_t in_item = 22 + (size_t)opt.size + 9 + strlen(UNIQUE) - 8;
        for (long i = 0; i < opt.batch; i++)
            hex8(copy + message.body + (size_t)i * item + in_item, unique++);
    }
}

static uint64_t started, ended, messages, bytes, answers, errors, empty_answers, in_flight;

static void run_send(void) {
    uint64_t deadline = opt.count ? UINT64_MAX : 0, requested = 0, begin_counting = 0;
    uint64_t wanted = opt.count ? (uint64_t)((opt.count + opt.batch - 1) / opt.batch) : UINT64_MAX;
    prepare_message();
    started = now_ns();
    begin_counting = started + (uint64_t)(opt.skip * 1e9);
    if (!deadline) deadline = begin_counting + (uint64_t)(opt.seconds * 1e9);
    uint64_t born = wall_ms();
    for (long i = 0; i < opt.connections; i++) {
        for (long w = 0; w < opt.in_flight && requested < wanted; w++, requested++, in_flight++)
            send_message(&connections[i], started, born, 0);
        flush_out(&connections[i]);
    }
    while (in_flight) {
        struct epoll_event events[64];
        int n = epoll_wait(epoll, events, 64, 30000);
        if (n == 0) die("no answer for 30 s with %llu requests in flight", (unsigned long long)in_flight);
        uint64_t now = now_ns();
        born = wall_ms();
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            struct answer a;
            if (events[i].events & EPOLLIN) read_in(c);
            now = now_ns();
            while (next_answer(c, &a)) {
                in_flight--;
                if (a.code) { if (!errors++) show_error(&a, "a send"); }
                else if (now >= begin_counting && now <= deadline) {
                    answers++;
                    messages += (uint64_t)opt.batch;
                    sample(now - c->sent_at[a.opaque % MAX_IN_FLIGHT]);
                }
                if (now < deadline && requested < wanted) {
                    send_message(c, now, born, 0);
                    requested++;
                    in_flight++;
                }
            }
            flush_out(c);
        }
    }
    ended = now_ns();
    if (ended > deadline) ended = deadline;
    started = begin_counting < ended ? begin_counting : started;
    bytes = messages * (uint64_t)opt.size;
}

/* ---- pulling ---- */

static struct queue { uint64_t offset; int done; } queues[MAX_QUEUES];
static uint8_t queue_of[MAX_CONNECTIONS][MAX_IN_FLIGHT]; /* by opaque: whose answer is it */

static void pull(struct connection *c, long queue, int sys_flag, uint64_t now) {
    static struct frame f;
    begin(&f, PULL);
    field(&f, "consumerGroup", opt.group);
    field(&f, "topic", topics[0]);
    number(&f, "queueId", queue);
    number(&f, "queueOffset", (long long)queues[queue].offset);
    number(&f, "maxMsgNums", opt.max_pull);
    number(&f, "sysFlag", sys_flag);
    number(&f, "commitOffset", 0);
    number(&f, "suspendTimeoutMillis", opt.suspend_ms);
    field(&f, "subscription", "*");
    number(&f, "subVersion", 0);
    field(&f, "expressionType", "TAG");
    number(&f, "maxMsgBytes", 262144);
    close_header(&f);
    finish(&f);
    queue_of[c->index][c->next_opaque % MAX_IN_FLIGHT] = (uint8_t)queue;
    request(c, &f, now);
}

/* Walks the records of a pull's answer: counts and checks them, and samples the delay when `now` is given. */
static void take_records(const struct answer *a, long queue, uint64_t now, uint64_t counted_from) {
    struct queue *q = &queues[queue];
    const uint8_t *p = a->body, *end = p + a->body_length;
    while (p < end) {
        uint32_t total = get32(p), sys_flag = get32(p + 36);
        if (total > (size_t)(end - p) || get32(p + 4) != 0xDAA320A7) die("queue %ld: not a record", queue);
        const uint8_t *body = p + 84 + (sys_flag & 0x10 ? 12 : 0) + (sys_flag & 0x20 ? 12 : 0);
        uint32_t body_length = get32(body);
        if (get64(p + 20) != q->offset)
            die("queue %ld: offset %llu where %llu was due", queue, (unsigned long long)get64(p + 20),
                (unsigned long long)q->offset);
        if (body_length != (uint32_t)opt.size) die("queue %ld: a body of %u bytes", queue, body_length);
        if (now) {
            uint64_t due;
            memcpy(&due, body + 4, 8);
            if (now < due) die("queue %ld: a message %.3f ms before its time", queue, (double)(due - now) / 1e6);
            if (due >= counted_from) sample(now - due);
        }
        q->offset++;
        messages++;
        bytes += body_length;
        p += total;
    }
}

static void run_pull(void) {
    long open = opt.queues;
    started = now_ns();
    for (long q = 0; q < opt.queues; q++) pull(&connections[q % opt.connections], q, 4, started);
    for (long i = 0; i < opt.connections; i++) flush_out(&connections[i]);
    while (open) {
        struct epoll_event events[64];
        int n = epoll_wait(epoll, events, 64, 30000);
        if (n == 0) die("no answer for 30 s with %ld queues to read", open);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            struct answer a;
            if (events[i].events & EPOLLIN) read_in(c);
            uint64_t now = now_ns();
            while (next_answer(c, &a)) {
                uint8_t queue = queue_of[c->index][a.opaque % MAX_IN_FLIGHT];
                answers++;
                sample(now - c->sent_at[a.opaque % MAX_IN_FLIGHT]);
                if (a.code == FOUND) take_records(&a, queue, 0, 0);
                else if (a.code == PULL_RETRY || a.code == PULL_MOVED)
                    queues[queue].offset = (uint64_t)value_of(a.header, a.header_length, "nextBeginOffset", 0);
                else if (a.code != PULL_NOT_FOUND) show_error(&a, "a pull"), exit(1);
                if (a.code == PULL_NOT_FOUND || (opt.count && messages >= (uint64_t)opt.count)) open--;
                else pull(c, queue, 4, now);
            }
            flush_out(c);
        }
    }
    ended = now_ns();
}

/* ---- popping ---- */

static uint8_t *popped[MAX_QUEUES]; /* one byte a message: was it seen? */

static void pop(struct connection *c, uint64_t now, uint64_t wall) {
    static struct frame f;
    static size_t born;
    if (!f.length) {
        begin(&f, POP);
        field(&f, "consumerGroup", opt.group);
        field(&f, "topic", topics[0]);
        number(&f, "queueId", -1);
        number(&f, "maxMsgNums", opt.max_pull);
        number(&f, "invisibleTime", 60000);
        number(&f, "pollTime", 0);
        born = number(&f, "bornTime", 1000000000000);
        number(&f, "initMode", 0);
        field(&f, "expType", "TAG");
        field(&f, "exp", "*");
        field(&f, "order", "false");
        close_header(&f);
        finish(&f);
    }
    queue_of[c->index][c->next_opaque % MAX_IN_FLIGHT] = 0;
    decimal(request(c, &f, now) + born, wall, 13);
}

/* The text of a JSON string field in a header; its length in *length. */
static const char *text_of(const struct answer *a, const char *key, size_t *length) {
    const char *end = (const char *)a->header + a->header_length;
    const char *p = memmem(a->header, a->header_length, key, strlen(key));
    if (!p) die("a pop's answer has no %s", key);
    p += strlen(key) + 3; /* ":" and the quotes around it */
    *length = (size_t)((const char *)memchr(p, '"', (size_t)(end - p)) - p);
    return p;
}

static size_t base64(char *out, const uint8_t *data, size_t length) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *p = out;
    for (size_t i = 0; i < length; i += 3) {
        uint32_t v = (uint32_t)data[i] << 16 | (i + 1 < length ? (uint32_t)data[i + 1] << 8 : 0) |
                     (i + 2 < length ? data[i + 2] : 0);
        *p++ = letters[v >> 18];
        *p++ = letters[v >> 12 & 63];
        *p++ = i + 1 < length ? letters[v >> 6 & 63] : '=';
        *p++ = i + 2 < length ? letters[v & 63] : '=';
    }
    *p = 0;
    return (size_t)(p - out);
}

/* Acknowledges everything that a pop's answer names: one entry a queue, a bit a message. */
static void acknowledge(struct connection *c, const struct answer *a, uint64_t now) {
    static struct frame f;
    size_t starts_length, offsets_length;
    const char *starts = text_of(a, "startOffsetInfo", &starts_length);
    const char *offsets = text_of(a, "msgOffsetInfo", &offsets_length);
    const char *starts_end = starts + starts_length, *offsets_end = offsets + offsets_length;
    long long popped_at = value_of(a->header, a->header_length, "popTime", 0);
    long long invisible = value_of(a->header, a->header_length, "invisibleTime", 0);
    long long revive = value_of(a->header, a->header_length, "reviveQid", 0);
    begin(&f, BATCH_ACK);
    close_header(&f);
    text(&f, "{\"acks\":[");
    for (int first = 1; starts < starts_end; first = 0) {
        char *p;
        uint8_t bits[8192] = {0};
        char encoded[11000], entry[11600];
        long retry = strtol(starts, &p, 10), queue = strtol(p, &p, 10);
        long long start = strtoll(p, &p, 10);
        starts = p + 1;
        strtol(offsets, &p, 10);
        if (strtol(p, &p, 10) != queue) die("startOffsetInfo and msgOffsetInfo name other queues");
        size_t highest = 0;
        do {
            size_t bit = (size_t)(strtoll(p + (*p == ','), &p, 10) - start);
            if (bit >= sizeof bits * 8) die("queue %ld: offsets too far apart", queue);
            bits[bit / 8] |= (uint8_t)(1 << bit % 8);
            if (bit > highest) highest = bit;
        } while (p < offsets_end && *p == ',');
        offsets = p + 1;
        base64(encoded, bits, highest / 8 + 1);
        snprintf(entry, sizeof entry,
                 "%s{\"b\":\"%s\",\"c\":\"%s\",\"it\":%lld,\"pt\":%lld,\"q\":%ld,\"r\":\"%ld\",\"rq\":%lld,\"so\":%lld,"
                 "\"t\":\"%s\"}", first ? "" : ",", encoded, opt.group, invisible, popped_at, queue, retry, revive,
                 start, topics[0]);
        text(&f, entry);
    }
    text(&f, "],\"brokerName\":\"");
    text(&f, opt.broker);
    text(&f, "\"}");
    finish(&f);
    queue_of[c->index][c->next_opaque % MAX_IN_FLIGHT] = 1;
    request(c, &f, now);
}

static uint64_t take_popped(const struct answer *a) {
    const uint8_t *p = a->body, *end = p + a->body_length;
    uint64_t count = 0;
    while (p < end) {
        uint32_t total = get32(p), queue = get32(p + 12), sys_flag = get32(p + 36);
        uint64_t offset = get64(p + 20);
        if (total > (size_t)(end - p) || get32(p + 4) != 0xDAA320A7 || queue >= MAX_QUEUES) die("not a record");
        if (offset >= (uint64_t)opt.count) die("queue %u: offset %llu", queue, (unsigned long long)offset);
        if (popped[queue][offset]++) die("queue %u: offset %llu came twice", queue, (unsigned long long)offset);
        bytes += get32(p + 84 + (sys_flag & 0x10 ? 12 : 0) + (sys_flag & 0x20 ? 12 : 0));
        count++;
        p += total;
    }
    return count;
}

static void run_pop(void) {
    uint64_t found = 0;
    if (!opt.count) die("--count is needed for pop: how many messages the topic has");
    if (binary()) die("codes beyond 32767 need JSON headers");
    for (long q = 0; q < opt.queues; q++) popped[q] = calloc((size_t)opt.count, 1);
    started = now_ns();
    for (long i = 0; i < opt.connections; i++) {
        for (long w = 0; w < opt.in_flight; w++, in_flight++) pop(&connections[i], started, wall_ms());
        flush_out(&connections[i]);
    }
    while (in_flight) {
        struct epoll_event events[64];
        int n = epoll_wait(epoll, events, 64, 30000);
        if (n == 0) die("no answer for 30 s: %llu popped", (unsigned long long)found);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            struct answer a;
            if (events[i].events & EPOLLIN) read_in(c);
            uint64_t now = now_ns(), wall = wall_ms();
            while (next_answer(c, &a)) {
                in_flight--;
                answers++;
                sample(now - c->sent_at[a.opaque % MAX_IN_FLIGHT]);
                if (queue_of[c->index][a.opaque % MAX_IN_FLIGHT]) { /* an acknowledgement */
                    if (a.code) { if (!errors++) show_error(&a, "an acknowledgement"); }
                    continue;
                }
                if (a.code == FOUND) {
                    found += take_popped(&a);
                    acknowledge(c, &a, now);
                    in_flight++;
                } else if (a.code == POP_NOTHING || a.code == PULL_NOT_FOUND || a.code == POP_FULL) empty_answers++;
                else show_error(&a, "a pop"), exit(1);
                if (found < (uint64_t)opt.count) {
                    pop(c, now, wall);
                    in_flight++;
                }
            }
            flush_out(c);
        }
    }
    messages = found;
    ended = now_ns();
}

/* ---- end to end ---- */

static uint64_t clocks_apart; /* ns of CLOCK_REALTIME minus those of CLOCK_MONOTONIC */

static uint64_t wall_of(uint64_t monotonic) { return (monotonic + clocks_apart) / 1000000u; }

/* The next moment at which the wall clock shows a whole ms: what a timer can ask for. */
static uint64_t to_whole_ms(uint64_t monotonic) {
    return (monotonic + clocks_apart + 999999u) / 1000000u * 1000000u - clocks_apart;
}

static void run_e2e(void) {
    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall);
    clocks_apart = (uint64_t)wall.tv_sec * 1000000000u + (uint64_t)wall.tv_nsec - now_ns();
    struct connection *sender = &connections[0];
    uint64_t interval = 1000000000u / (uint64_t)opt.rate, sent = 0, acknowledged = 0;
    uint64_t wanted = (uint64_t)((opt.seconds + opt.skip) * (double)opt.rate);
    prepare_message();
    for (long q = 0; q < opt.queues; q++) pull(&connections[1 + q % (opt.connections - 1)], q, 6, now_ns());
    for (long i = 1; i < opt.connections; i++) flush_out(&connections[i]);
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    started = now_ns() + 100000000;
    struct itimerspec every = {{(time_t)(interval / 1000000000u), (long)(interval % 1000000000u)},
                               {(time_t)(started / 1000000000u), (long)(started % 1000000000u)}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &every, NULL);
    epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &(struct epoll_event){.events = EPOLLIN, .data.ptr = NULL});
    uint64_t counted_from = started + (uint64_t)(opt.skip * 1e9);
    while (acknowledged + errors < wanted || messages + errors < wanted) {
        struct epoll_event events[64];
        int n = epoll_wait(epoll, events, 64, 10000);
        if (n == 0) die("nothing for 10 s: %llu of %llu sent, %llu received", (unsigned long long)sent,
                        (unsigned long long)wanted, (unsigned long long)messages);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            struct answer a;
            if (!c) {
                uint64_t ticks;
                if (read(timer, &ticks, sizeof ticks) != sizeof ticks) continue;
                for (; ticks && sent < wanted; ticks--, sent++) {
                    uint64_t due = started + sent * interval;
                    if (opt.delay_ms) due = to_whole_ms(due) + (uint64_t)opt.delay_ms * 1000000u;
                    send_message(sender, now_ns(), wall_of(due) - (uint64_t)opt.delay_ms, due);
                }
                if (sent == wanted) epoll_ctl(epoll, EPOLL_CTL_DEL, timer, NULL);
                flush_out(sender);
                continue;
            }
            if (events[i].events & EPOLLIN) read_in(c);
            uint64_t now = now_ns();
            while (next_answer(c, &a)) {
                answers++;
                if (c == sender) {
                    if (a.code) { if (!errors++) show_error(&a, "a send"); }
                    else acknowledged++;
                    continue;
                }
                uint8_t queue = queue_of[c->index][a.opaque % MAX_IN_FLIGHT];
                if (a.code == FOUND) take_records(&a, queue, now, counted_from);
                else if (a.code == PULL_RETRY || a.code == PULL_MOVED)
                    queues[queue].offset = (uint64_t)value_of(a.header, a.header_length, "nextBeginOffset", 0);
                else if (a.code == PULL_NOT_FOUND) empty_answers++;
                else show_error(&a, "a pull"), exit(1);
                pull(c, queue, 6, now);
            }
            flush_out(c);
        }
    }
    ended = now_ns();
}

/* ---- command line ---- */

static void parse(int argc, char **argv) {
    struct { const char *name; long *number; const char **string; double *real; } table[] = {
        {"--host", NULL, &opt.host, NULL}, {"--port", &opt.port, NULL, NULL},
        {"--header", NULL, &opt.header, NULL}, {"--topic", NULL, &opt.topic, NULL},
        {"--group", NULL, &opt.group, NULL}, {"--broker", NULL, &opt.broker, NULL},
        {"--connections", &opt.connections, NULL, NULL},
        {"--in-flight", &opt.in_flight, NULL, NULL}, {"--size", &opt.size, NULL, NULL},
        {"--count", &opt.count, NULL, NULL}, {"--seconds", NULL, NULL, &opt.seconds},
        {"--skip", NULL, NULL, &opt.skip}, {"--topics", &opt.topics, NULL, NULL},
        {"--queues", &opt.queues, NULL, NULL}, {"--batch", &opt.batch, NULL, NULL},
        {"--rate", &opt.rate, NULL, NULL}, {"--max-pull", &opt.max_pull, NULL, NULL},
        {"--suspend-ms", &opt.suspend_ms, NULL, NULL}, {"--create", &opt.create, NULL, NULL},
        {"--delay-ms", &opt.delay_ms, NULL, NULL}, {"--deliver-at", &opt.deliver_at, NULL, NULL}};
    if (argc < 2) die("usage: load send|pull|pop|e2e --port N [--name value ...]; the options are in parse() of load.c");
    opt.mode = argv[1];
    for (int i = 2; i < argc; i += 2) {
        size_t o = 0;
        while (o < sizeof table / sizeof *table && strcmp(argv[i], table[o].name)) o++;
        if (o == sizeof table / sizeof *table || i + 1 == argc) die("unknown option or missing value: %s", argv[i]);
        if (table[o].string) *table[o].string = argv[i + 1];
        else if (table[o].real) *table[o].real = atof(argv[i + 1]);
        else *table[o].number = atol(argv[i + 1]);
    }
    if (!opt.port) die("--port is needed");
    if (!strcmp(opt.mode, "e2e") && opt.connections < 2) opt.connections = 2;
    if (!strcmp(opt.mode, "e2e") && opt.size < 8) die("--size must be at least 8 for e2e: the body carries a time");
    if (opt.connections > MAX_CONNECTIONS || opt.queues > MAX_QUEUES || opt.in_flight > MAX_IN_FLIGHT)
        die("at most %d connections, %d queues, %d in flight", MAX_CONNECTIONS, MAX_QUEUES, MAX_IN_FLIGHT);
}

int main(int argc, char **argv) {
    parse(argc, argv);
    epoll = epoll_create1(0);
    for (long i = 0; i < opt.connections; i++) open_connection(&connections[i], (int)i);
    create_topics(&connections[0]);
    if (!strcmp(opt.mode, "send")) run_send();
    else if (!strcmp(opt.mode, "pull")) run_pull();
    else if (!strcmp(opt.mode, "pop")) run_pop();
    else if (!strcmp(opt.mode, "e2e")) run_e2e();
    else die("unknown mode %s: send, pull, pop or e2e", opt.mode);
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
                 (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    double seconds = (double)(ended - started) / 1e9;
    printf("{\"mode\":\"%s\",\"messages\":%llu,\"seconds\":%.4f,\"rate\":%.1f,\"bytes\":%llu,\"answers\":%llu,"
           "\"errors\":%llu,\"empty\":%llu,\"p50_us\":%.1f,\"p99_us\":%.1f,\"p999_us\":%.1f,\"max_us\":%.1f,"
           "\"cpu_seconds\":%.3f}\n",
           opt.mode, (unsigned long long)messages, seconds, (double)messages / seconds, (unsigned long long)bytes,
           (unsigned long long)answers, (unsigned long long)errors, (unsigned long long)empty_answers,
           percentile_us(0.5), percentile_us(0.99), percentile_us(0.999), (double)worst / 1000.0, cpu);
    return 0;
}
