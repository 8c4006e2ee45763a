package conformance_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imgtool/imgtool/nbd/conformance"
)

const (
	document = "../../docs/nbd-conformance.md"
	begins   = "<!-- This table is made by go test ./nbd/conformance -update. -->\n"
	ends     = "<!-- end of the table -->\n"
)

// TestDocument makes sure that the table in docs is the one of testdata.
func TestDocument(t *testing.T) {
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok1 := bytes.Cut(text, []byte(begins))
	_, tail, ok2 := bytes.Cut(rest, []byte(ends))
	if !ok1 || !ok2 {
		t.Fatalf("%s has no place for the table", document)
	}
	want := slices.Concat(head, []byte(begins), []byte(table(t)), []byte(ends), tail)
	if bytes.Equal(text, want) {
		return
	}
	if !*update {
		t.Fatalf("the table in %s is not the one of testdata: go test -run TestDocument -update writes it", document)
	}
	if err := os.WriteFile(document, want, 0o644); err != nil {
		t.Fatal(err)
	}
}

// table has a row for each check that some server does not pass.
func table(t *testing.T) string {
	var b strings.Builder
	b.WriteString("| check | rule |")
	found := make([]map[string]string, len(known))
	for i, p := range known {
		found[i] = worst(t, p)
		fmt.Fprintf(&b, " %s |", p.version)
	}
	b.WriteString("\n| --- | --- |" + strings.Repeat(" --- |", len(known)) + "\n")
	for _, c := range conformance.Checks() {
		row, any := "", false
		for i := range known {
			row += " " + found[i][c.ID] + " |"
			any = any || found[i][c.ID] != ""
		}
		if any {
			fmt.Fprintf(&b, "| `%s` | %s: %s |%s\n", c.ID, c.Level, c.Rule, row)
		}
	}
	return b.String()
}

// worst says what a server does at each check in the worst of its setups, and in which, where not in the first.
func worst(t *testing.T, p peer) map[string]string {
	text, err := os.ReadFile(filepath.Join("testdata", p.program+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	order := []string{"note", "warn", "**fail**"}
	all := map[string]string{}
	rank := map[string]int{}
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(line, ": ", 3)
		outcome, id, _ := strings.Cut(parts[1], " ")
		if outcome == "fail" {
			outcome = "**fail**"
		}
		if r := 1 + slices.Index(order, outcome); r > rank[id] {
			rank[id] = r
			all[id] = outcome
			if parts[0] != p.setups[0].name {
				all[id] += " (" + parts[0] + ")"
			}
		}
	}
	return all
}
