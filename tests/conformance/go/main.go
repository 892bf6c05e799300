// Verifies webhooks with the server SDK for Go: reads one JSON object per line, prints the verdict of each.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"

	"github.com/pusher/pusher-http-go/v5"
)

type webhook struct {
	Key, Secret, SignedBy, Signature, Body string
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(make([]byte, 0, 1<<20), 1<<20)
	for lines.Scan() {
		var received webhook
		if err := json.Unmarshal(lines.Bytes(), &received); err != nil {
			panic(err)
		}
		client := pusher.Client{AppID: "1", Key: received.Key, Secret: received.Secret}
		header := http.Header{}
		header.Set("X-Pusher-Key", received.SignedBy)
		header.Set("X-Pusher-Signature", received.Signature)
		verdict := map[string]any{}
		if found, err := client.Webhook(header, []byte(received.Body)); err != nil {
			verdict["error"] = err.Error()
		} else {
			names := []string{}
			for _, event := range found.Events {
				names = append(names, event.Name)
			}
			verdict["events"] = names
			verdict["time"] = found.TimeMs
		}
		line, err := json.Marshal(verdict)
		if err != nil {
			panic(err)
		}
		fmt.Println(string(line))
	}
	if err := lines.Err(); err != nil {
		panic(err)
	}
}
