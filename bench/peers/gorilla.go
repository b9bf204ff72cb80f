// Peer: Go with gorilla/websocket and encoding/json, a goroutine a connection, as the library's examples show it.
//
//	GO111MODULE=off GOPATH=/usr/share/gocode go build -o gorilla bench/peers/gorilla.go && ./gorilla PORT
package main

import (
	"encoding/json"
	"log"
	"net/http"
	"os"
	"strconv"
	"sync"

	"github.com/gorilla/websocket"
)

type request struct {
	Type    string          `json:"type"`
	SESSID  string          `json:"SESSID"`
	ID      json.RawMessage `json:"id"`
	Message outgoing        `json:"message"`
}

type outgoing struct {
	TimeStamp json.RawMessage `json:"timeStamp"`
	ToUID     json.RawMessage `json:"touID"`
	Content   string          `json:"content"`
}

type message struct {
	Type    string    `json:"type"`
	Message delivered `json:"message"`
}

type delivered struct {
	TimeStamp json.RawMessage `json:"timeStamp"`
	FromUID   string          `json:"fromuID"`
	ToUID     json.RawMessage `json:"touID"`
	Content   string          `json:"content"`
}

type sendResponse struct {
	Type     string `json:"type"`
	Response answer `json:"response"`
}

type answer struct {
	ID     json.RawMessage `json:"id"`
	Value  bool            `json:"value"`
	Reason string          `json:"reason,omitempty"`
}

// gorilla allows one writer at a time.
type member struct {
	socket *websocket.Conn
	lock   sync.Mutex
}

func (m *member) send(frame []byte) error {
	m.lock.Lock()
	defer m.lock.Unlock()
	return m.socket.WriteMessage(websocket.TextMessage, frame)
}

var (
	members  = map[string][]*member{}
	guard    sync.RWMutex
	upgrader = websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
)

func enter(uid string, m *member) {
	guard.Lock()
	defer guard.Unlock()
	here := members[uid]
	members[uid] = append(here[:len(here):len(here)], m)
}

func leave(uid string, m *member) {
	guard.Lock()
	defer guard.Unlock()
	var rest []*member
	for _, other := range members[uid] {
		if other != m {
			rest = append(rest, other)
		}
	}
	if rest == nil {
		delete(members, uid)
	} else {
		members[uid] = rest
	}
}

// "7" and 7 are the same user.
func key(uid json.RawMessage) string {
	if text, err := strconv.Unquote(string(uid)); err == nil {
		return text
	}
	return string(uid)
}

func encode(frame any) []byte {
	text, err := json.Marshal(frame)
	if err != nil {
		log.Fatal(err)
	}
	return text
}

func serve(w http.ResponseWriter, r *http.Request) {
	socket, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer socket.Close()
	me := &member{socket: socket}
	uid := ""
	defer func() {
		if uid != "" {
			leave(uid, me)
		}
	}()
	for {
		_, text, err := socket.ReadMessage()
		if err != nil {
			return
		}
		var asked request
		if json.Unmarshal(text, &asked) != nil {
			return
		}
		switch {
		case asked.Type == "auth-request" && uid == "":
			uid = asked.SESSID
			enter(uid, me)
			me.send([]byte(`{"type":"auth-response","response":true}`))
		case asked.Type == "message-send-request" && uid != "":
			guard.RLock()
			here := members[key(asked.Message.ToUID)]
			guard.RUnlock()
			response := answer{ID: asked.ID, Value: len(here) > 0}
			if response.Value {
				frame := encode(message{"message", delivered{
					asked.Message.TimeStamp, uid, asked.Message.ToUID, asked.Message.Content}})
				for _, other := range here {
					other.send(frame)
				}
			} else {
				response.Reason = "receiving-user-not-connected"
			}
			me.send(encode(sendResponse{"send-request-response", response}))
		}
	}
}

func main() {
	http.HandleFunc("/", serve)
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
