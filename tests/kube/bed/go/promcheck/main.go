// Reads rule files and single expressions as Prometheus does, and says what it has against them.
//
//	promcheck rules FILE.yaml    a file of rule groups: names, labels, durations, templates and expressions
//	promcheck expressions        expressions from standard input, one a line
package main

import (
	"bufio"
	"fmt"
	"log/slog"
	"os"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

func main() {
	var wrong []error
	promql := parser.NewParser(parser.Options{})
	switch {
	case len(os.Args) == 3 && os.Args[1] == "rules":
		_, wrong = rulefmt.ParseFile(os.Args[2], false, model.UTF8Validation, promql, slog.Default())
	case len(os.Args) == 2 && os.Args[1] == "expressions":
		lines := bufio.NewScanner(os.Stdin)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			if _, err := promql.ParseExpr(lines.Text()); err != nil {
				wrong = append(wrong, fmt.Errorf("%s: %w", lines.Text(), err))
			}
		}
		if err := lines.Err(); err != nil {
			wrong = append(wrong, err)
		}
	default:
		fmt.Fprintln(os.Stderr, "usage: promcheck rules FILE.yaml | promcheck expressions < FILE")
		os.Exit(2)
	}
	for _, err := range wrong {
		fmt.Println(err)
	}
	if len(wrong) > 0 {
		os.Exit(1)
	}
}
