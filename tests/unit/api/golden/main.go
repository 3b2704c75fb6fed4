// Command golden says what sigs.k8s.io/yaml, the YAML of kubectl and of every Go client of Kubernetes, reads and writes
// for the cases on standard input (see cases.py). It prints a JSON list with one row a line.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"sigs.k8s.io/yaml"
)

// row is a case and Go's answers. Values are JSON; a text that Go does not read has the error instead.
type row struct {
	Text     *string `json:"text,omitempty"`
	Number   string  `json:"number,omitempty"`
	Ours     string  `json:"ours,omitempty"`
	OursFlow string  `json:"oursFlow,omitempty"`

	Plain       *answer `json:"plain,omitempty"`       // k: TEXT, without quotes
	PlainKey    *answer `json:"plainKey,omitempty"`    // TEXT: 1, without quotes
	OursRead    *answer `json:"oursRead,omitempty"`    // k: OURS
	FlowRead    *answer `json:"flowRead,omitempty"`    // {k: OURSFLOW, l: [OURSFLOW]}
	KeyRead     *answer `json:"keyRead,omitempty"`     // ? OURSFLOW, the key of 1
	Written     string  `json:"written,omitempty"`     // what Go writes for {"k": TEXT}; empty: it cannot
	WrittenRead *answer `json:"writtenRead,omitempty"` // and what it reads back
	WrittenKey  string  `json:"writtenKey,omitempty"`  // what Go writes for {TEXT: 1}
}

type answer struct {
	JSON  json.RawMessage `json:"json,omitempty"`
	Error string          `json:"error,omitempty"`
}

func read(document string) *answer {
	found, err := yaml.YAMLToJSON([]byte(document))
	if err != nil {
		return &answer{Error: err.Error()}
	}
	return &answer{JSON: found}
}

// write gives the YAML of a value, or "" where Go's YAML cannot hold it (some control characters).
func write(value any) string {
	document, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	text, err := yaml.JSONToYAML(document)
	if err != nil {
		return ""
	}
	return string(text)
}

func (r *row) fill() {
	if r.Text == nil {
		r.Written = write(map[string]any{"k": json.RawMessage(r.Number)})
		r.WrittenRead = read(r.Written)
		r.Plain = read("k: " + r.Number + "\n")
		if r.Ours != "" {
			r.OursRead = read("k: " + r.Ours + "\n")
		}
		return
	}
	if text := *r.Text; !strings.ContainsAny(text, "\r\n") {
		r.Plain = read("k: " + text + "\n")
		r.PlainKey = read(text + ": 1\n")
	}
	r.OursRead = read("k: " + r.Ours + "\n")
	r.FlowRead = read("{k: " + r.OursFlow + ", l: [" + r.OursFlow + "]}\n")
	r.KeyRead = read("? " + r.OursFlow + "\n: 1\n")
	r.Written = write(map[string]any{"k": *r.Text})
	if r.Written != "" {
		r.WrittenRead = read(r.Written)
	}
	r.WrittenKey = write(map[string]any{*r.Text: 1})
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	separator := "[\n"
	for lines.Scan() {
		var r row
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			panic(err)
		}
		r.fill()
		encoded, err := json.Marshal(r)
		if err != nil {
			panic(err)
		}
		fmt.Print(separator, string(encoded))
		separator = ",\n"
	}
	fmt.Println("\n]")
}
