// Renders templates as Ollama does: each line of standard input is a JSON object with a template
// and a conversation, each line of standard output the text it becomes, as a JSON string.
//
// Ollama joins neighbours of one role and all system turns with a blank line between, and gives a
// template .System, .Messages, .Tools and .Response; names that it does not give are empty.
package main

import (
	"bufio"
	"encoding/json"
	"log"
	"os"
	"strings"
	"text/template"
)

type turn struct {
	Role    string
	Content string
}

type job struct {
	Template string
	Messages []turn
}

func joined(turns []turn) (string, []turn) {
	var system []string
	var rest []turn
	for _, each := range turns {
		if each.Role == "system" {
			system = append(system, each.Content)
		}
		last := len(rest) - 1
		if last >= 0 && rest[last].Role == each.Role && each.Role != "tool" {
			rest[last].Content += "\n\n" + each.Content
		} else {
			rest = append(rest, each)
		}
	}
	return strings.Join(system, "\n\n"), rest
}

func rendered(asked job) string {
	given := template.FuncMap{"json": func(value any) string {
		text, _ := json.Marshal(value)
		return string(text)
	}}
	parsed, err := template.New("").Option("missingkey=zero").Funcs(given).Parse(asked.Template)
	if err != nil {
		log.Fatal(err)
	}
	system, messages := joined(asked.Messages)
	var text strings.Builder
	err = parsed.Execute(&text, map[string]any{
		"System": system, "Messages": messages, "Tools": nil, "Response": "",
	})
	if err != nil {
		log.Fatal(err)
	}
	return text.String()
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	out := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var asked job
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			log.Fatal(err)
		}
		if err := out.Encode(rendered(asked)); err != nil {
			log.Fatal(err)
		}
	}
}
