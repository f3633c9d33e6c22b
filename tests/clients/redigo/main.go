// redigo at its work: main PORT OTHER_PORT
package main

import (
	"bytes"
	"crypto/sha1"
	"fmt"
	"os"
	"sort"
	"time"

	"github.com/gomodule/redigo/redis"
)

var port, otherPort = os.Args[1], os.Args[2]

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func open(port string, options ...redis.DialOption) redis.Conn {
	conn, err := redis.Dial("tcp", "127.0.0.1:"+port, options...)
	check(err)
	return conn
}

func plain(value interface{}) string {
	switch value := value.(type) {
	case []byte:
		if len(value) > 1000 {
			return fmt.Sprintf("%d bytes %x", len(value), sha1.Sum(value))
		}
		return fmt.Sprintf("%q", value)
	case []interface{}:
		text := "["
		for _, item := range value {
			text += plain(item) + " "
		}
		return text + "]"
	case error:
		return "error " + value.Error()
	default:
		return fmt.Sprintf("%v", value)
	}
}

func say(what string, values ...interface{}) {
	fmt.Println(what+":", plain(values))
}

func do(conn redis.Conn, command string, words ...interface{}) {
	reply, err := conn.Do(command, words...)
	say(fmt.Sprintf("%s %.60v", command, fmt.Sprint(words...)), reply, err)
}

func types(c redis.Conn) {
	do(c, "SET", "s", "one", "EX", 100)
	do(c, "GET", "s")
	do(c, "GET", "s")
	do(c, "TTL", "s")
	do(c, "GET", "missing")
	do(c, "SET", "s", "two", "NX")
	do(c, "HSET", "h", "f", "v", "g", "w")
	do(c, "HGETALL", "h")
	do(c, "HDEL", "h", "f")
	do(c, "HGETALL", "h")
	do(c, "RPUSH", "l", "a", "b", "c")
	do(c, "LRANGE", "l", 0, -1)
	do(c, "LPOP", "l")
	do(c, "LRANGE", "l", 0, -1)
	do(c, "SADD", "t", "x")
	do(c, "SMEMBERS", "t")
	do(c, "ZADD", "z", 1.5, "a", 2, "b")
	do(c, "ZRANGE", "z", 0, -1, "WITHSCORES")
	do(c, "ZINCRBY", "z", 2, "a")
	do(c, "ZRANGE", "z", 0, -1)
	do(c, "GET", "h")
	do(c, "NOSUCH", "x")
	do(c, "GET")
	do(c, "SELECT", 3)
	do(c, "SET", "s", "of 3")
	do(c, "GET", "s")
	do(c, "SELECT", 0)
	do(c, "GET", "s")
}

func pipeline(c redis.Conn) {
	for i := 0; i < 250; i++ {
		check(c.Send("SET", fmt.Sprint("p", i), i*i))
		check(c.Send("GET", fmt.Sprint("p", i)))
	}
	check(c.Flush())
	right := 0
	for i := 0; i < 250; i++ {
		_, err := c.Receive()
		check(err)
		value, err := redis.Int(c.Receive())
		check(err)
		if value == i*i {
			right++
		}
	}
	say("pipeline", right)
}

func transactions(c, other redis.Conn) {
	for _, command := range []string{"MULTI", "MULTI", "WATCH", "DISCARD", "EXEC"} {
		do(c, command)
	}
	check(c.Send("MULTI"))
	check(c.Send("SET", "m", 1))
	check(c.Send("INCR", "m"))
	check(c.Send("LPUSH", "m", "x"))
	do(c, "EXEC")
	for _, conflict := range []bool{false, true} {
		do(c, "WATCH", "m")
		do(c, "GET", "m")
		if conflict {
			do(other, "SET", "m", "by another")
		}
		check(c.Send("MULTI"))
		check(c.Send("SET", "m", "mine"))
		do(c, "EXEC")
	}
	do(c, "GET", "m")
}

func subscriptions(other redis.Conn) {
	conn := redis.PubSubConn{Conn: open(port)}
	check(conn.Subscribe("news"))
	check(conn.PSubscribe("sport.*"))
	for {
		switch event := conn.ReceiveWithTimeout(5 * time.Second).(type) {
		case redis.Subscription:
			say("subscription", event.Kind, event.Channel, event.Count)
			if event.Kind == "psubscribe" {
				do(other, "PUBLISH", "news", "hello")
				do(other, "PUBLISH", "sport.chess", "mate")
				check(conn.Ping("still there"))
			}
			if event.Count == 0 {
				do(conn.Conn, "GET", "s")
				conn.Close()
				return
			}
		case redis.Message:
			say("message", event.Channel, event.Pattern, event.Data)
			if event.Channel == "sport.chess" {
				check(conn.Unsubscribe())
				check(conn.PUnsubscribe())
			}
		case redis.Pong:
			say("pong", event.Data)
		case error:
			panic(event)
		}
	}
}

func blocking(other redis.Conn) {
	popped := make(chan string)
	go func() {
		waiting := open(port)
		defer waiting.Close()
		reply, err := waiting.Do("BLPOP", "none", "queue", 5)
		popped <- plain([]interface{}{reply, err})
		reply, err = waiting.Do("BLPOP", "none", "0.1")
		popped <- plain([]interface{}{reply, err})
	}()
	time.Sleep(100 * time.Millisecond)
	do(other, "RPUSH", "queue", "job")
	say("blpop", <-popped, <-popped)
}

func scripts(c redis.Conn) {
	do(c, "SCRIPT", "FLUSH")
	add := redis.NewScript(1, "return {redis.call('incrby', KEYS[1], ARGV[1]), 'x', false}")
	for i := 0; i < 2; i++ {
		reply, err := add.Do(c, "counted", 3)
		say("script", reply, err)
	}
	do(c, "EVALSHA", "0000000000000000000000000000000000000000", 0)
	do(c, "GET", "counted")
}

func bigAndScan(c, other redis.Conn) {
	do(c, "SET", "big", bytes.Repeat([]byte("nearside"), 625000))
	for _, conn := range []redis.Conn{c, c, other} {
		do(conn, "GET", "big")
	}
	found := map[string]bool{}
	for cursor := "0"; ; {
		reply, err := redis.Values(c.Do("SCAN", cursor, "MATCH", "p*", "COUNT", 50))
		check(err)
		var keys []string
		_, err = redis.Scan(reply, &cursor, &keys)
		check(err)
		for _, key := range keys {
			found[key] = true
		}
		if cursor == "0" {
			break
		}
	}
	keys := []string{}
	for key := range found {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	say("scan", len(keys), fmt.Sprint(keys[:5]))
}

// a pool, many goroutines, a connection that is killed
func pool() {
	pool := &redis.Pool{MaxIdle: 4, MaxActive: 8, Wait: true, Dial: func() (redis.Conn, error) {
		return redis.Dial("tcp", "127.0.0.1:"+port, redis.DialDatabase(2), redis.DialClientName("pooled"))
	}}
	done := make(chan error)
	for i := 0; i < 16; i++ {
		go func() {
			for j := 0; j < 20; j++ {
				conn := pool.Get()
				_, err := conn.Do("INCR", "together")
				conn.Close()
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for i := 0; i < 16; i++ {
		check(<-done)
	}
	conn := pool.Get()
	do(conn, "GET", "together")
	do(conn, "CLIENT", "GETNAME")
	id, err := redis.Int(conn.Do("CLIENT", "ID"))
	check(err)
	killer := open(port)
	killed, err := killer.Do("CLIENT", "KILL", "ID", id)
	say("killed", killed, err)
	_, err = conn.Do("PING")
	say("broken", err != nil, conn.Err() != nil)
	conn.Close()
	conn = pool.Get()
	do(conn, "GET", "together")
	conn.Close()
}

func main() {
	c, other := open(port), open(otherPort)
	types(c)
	pipeline(c)
	transactions(c, other)
	subscriptions(other)
	blocking(other)
	scripts(c)
	bigAndScan(c, other)
	pool()
	fmt.Println("done")
}
