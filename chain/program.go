package chain

import "strings"

// maxWords bounds the words of a program in brackets.
const maxWords = 4096

// isProgram reports whether text is a program in brackets.
func isProgram(text string) bool { return strings.HasPrefix(text, "[") && strings.HasSuffix(text, "]") }

// programLen returns how many bytes at the start of text, which is a [, reach to the ] that ends a program, 0 where none does. Brackets in
// quotes or behind a backslash do not count, others come in pairs.
func programLen(text string) int {
	depth := 0
	var quote byte
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quote == '\'':
			if c == quote {
				quote = 0
			}
		case c == '\\':
			i++
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		case c == '[':
			depth++
		case c == ']':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return 0
}

// cutProgram returns the program that text begins with, and what follows the :: behind it. program is "" where text begins with none.
func cutProgram(text string) (program, rest string, more bool) {
	if !strings.HasPrefix(text, "[") {
		return "", "", false
	}
	n := programLen(text)
	if rest, more = strings.CutPrefix(text[n:], betweenLayers); n > 0 && (more || rest == "") {
		return text[:n], rest, more
	}
	return "", "", false
}

// ProgramWords returns the words of a program in brackets, [ WORD... ]: what Program was given. Spaces part words. In '...' every sign stands for itself,
// in "..." every one but a backslash, which there and outside of quotes makes the next sign stand for itself: in "..." only " and \ need one, and
// before any other sign it is itself. There is nothing else: no variables, no patterns. What is written wrongly is a *UsageError.
func ProgramWords(text string) ([]string, error) {
	if programLen(text) != len(text) {
		return nil, usage("%s: the brackets are not those of one program; a bracket that stands for itself is put in quotes", text)
	}
	inner := text[1 : len(text)-1]
	var words []string
	var word strings.Builder
	var quote byte
	begun := false // a word, perhaps an empty one in quotes
	for i := 0; i < len(inner); i++ {
		c := inner[i]
		switch {
		case c == '\\' && quote != '\'' && i+1 < len(inner) && (quote == 0 || inner[i+1] == '"' || inner[i+1] == '\\'):
			i++
			begun = true
			word.WriteByte(inner[i])
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '\'' || c == '"'):
			quote, begun = c, true
		case quote == 0 && (c == ' ' || c == '\t' || c == '\n'):
			if begun {
				words = append(words, word.String())
			}
			word.Reset()
			begun = false
		default:
			begun = true
			word.WriteByte(c)
		}
	}
	if begun {
		words = append(words, word.String())
	}
	switch {
	case len(words) == 0 || words[0] == "":
		return nil, usage("%s: there is no program in the brackets", text)
	case len(words) > maxWords:
		return nil, usage("[ %s ... ]: more than %d words", words[0], maxWords)
	}
	for _, w := range words {
		if strings.ContainsRune(w, 0) {
			return nil, usage("[ %s ... ]: a word holds a zero byte", words[0])
		}
	}
	return words, nil
}

// Program returns the source that is a program with its arguments: the text from which Open starts it.
func Program(argv []string) string {
	var b strings.Builder
	b.WriteString("[")
	for _, w := range argv {
		b.WriteByte(' ')
		if w != "" && !strings.ContainsAny(w, " \t\n'\"\\[]") {
			b.WriteString(w)
			continue
		}
		b.WriteString("'" + strings.ReplaceAll(w, "'", `'\''`) + "'")
	}
	return b.String() + " ]"
}
