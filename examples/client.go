// A client of overlayd in Go: requests are pipelined over one connection, and events come in between.
//
//	go run client.go /run/overlayd/overlayd.sock
//
// The contract is docs/protocol.md.
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
)

const maxBody = 8 << 20 // bytes of a frame's body, both ways

// Refusal is an answer `err`. Code is stable, Message is for a person.
type Refusal struct{ Message, Code string }

func (r *Refusal) Error() string { return r.Message }

// Client is one connection. Any number of goroutines may call it at once.
type Client struct {
	conn   net.Conn
	mutex  sync.Mutex
	next   uint64
	waits  map[uint64]chan json.RawMessage
	lost   error
	Events chan json.RawMessage // the newest are dropped while nobody reads
}

func Dial(path string) (*Client, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	client := &Client{conn: conn, waits: map[uint64]chan json.RawMessage{}, Events: make(chan json.RawMessage, 64)}
	go client.read()
	return client, nil
}

// Call sends a request, which has its op, and fills answer, of which nil is none. It returns a *Refusal for `err`.
// After a lost connection it is not known whether the request was done: send it again, every request may be repeated.
func (c *Client) Call(request any, answer any) error {
	wait := make(chan json.RawMessage, 1)
	c.mutex.Lock()
	if c.lost != nil {
		defer c.mutex.Unlock()
		return c.lost
	}
	c.next++
	body, err := json.Marshal(map[string]any{"frame": "request", "id": c.next, "request": request})
	if err == nil && len(body) > maxBody {
		err = errors.New("the request is larger than a frame")
	}
	if err == nil {
		c.waits[c.next] = wait
		_, err = c.conn.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...))
	}
	c.mutex.Unlock()
	if err != nil {
		return err
	}
	response, ok := <-wait
	if !ok {
		return c.lost
	}
	var result struct{ Result, Message, Code string }
	if err := json.Unmarshal(response, &result); err != nil {
		return err
	}
	if result.Result == "err" {
		return &Refusal{result.Message, result.Code}
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(response, answer)
}

func (c *Client) Close() error { return c.conn.Close() }

func (c *Client) read() {
	err := c.readFrames(bufio.NewReader(c.conn))
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.lost = fmt.Errorf("connection to overlayd: %w", err)
	for _, wait := range c.waits {
		close(wait)
	}
	close(c.Events)
}

func (c *Client) readFrames(reader io.Reader) error {
	for {
		var length uint32
		if err := binary.Read(reader, binary.LittleEndian, &length); err != nil {
			return err
		}
		if length > maxBody {
			return errors.New("a frame that is too large")
		}
		body := make([]byte, length)
		if _, err := io.ReadFull(reader, body); err != nil {
			return err
		}
		var frame struct {
			Frame    string
			ID       uint64
			Response json.RawMessage
		}
		if err := json.Unmarshal(body, &frame); err != nil {
			return err
		}
		if frame.Frame == "event" {
			select {
			case c.Events <- body:
			default:
			}
			continue
		}
		c.mutex.Lock()
		wait := c.waits[frame.ID]
		delete(c.waits, frame.ID)
		c.mutex.Unlock()
		if wait != nil {
			wait <- frame.Response
		}
	}
}

func main() {
	client, err := Dial(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer client.Close()
	var hello struct{ Version string }
	fmt.Println("hello", client.Call(map[string]any{"op": "hello"}, &hello), hello.Version)
	var wait sync.WaitGroup
	for number := range 100 { // at once, and each gets its own answer
		wait.Add(1)
		go func() {
			defer wait.Done()
			if err := client.Call(map[string]any{"op": "set_local_node_id", "node_id": 7}, nil); err != nil {
				fmt.Println("call", number, err)
			}
		}()
	}
	wait.Wait()
	var status struct {
		NodeID uint64 `json:"node_id"`
	}
	fmt.Println("status", client.Call(map[string]any{"op": "status"}, &status), status.NodeID)
	var refusal *Refusal
	err = client.Call(map[string]any{"op": "allocate_ip", "service": "nosuch", "join_global": false}, nil)
	fmt.Println("refused", errors.As(err, &refusal) && refusal.Code == "not_set_up")
}
