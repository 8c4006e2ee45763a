package main

import "github.com/imgtool/imgtool/chain"

// joinPrograms makes one argument of each program in brackets of which the words are arguments of their own, as in [ nbdkit memory 1G ]: the source
// that starts it. Its flags are not those of imgtool then. Brackets in brackets belong to the program.
func joinPrograms(args []string) []string {
	var joined []string
	for i := 0; i < len(args); i++ {
		if n := programWords(args[i:]); n > 2 {
			joined = append(joined, chain.Program(args[i+1:i+n-1]))
			i += n - 1
			continue
		}
		joined = append(joined, args[i])
	}
	return joined
}

// programWords returns how many arguments reach from the [ that the first one is to the ] that belongs to it; 0 where none does.
func programWords(args []string) int {
	depth := 0
	for i, a := range args {
		switch a {
		case "[":
			depth++
		case "]":
			depth--
		}
		if depth == 0 {
			return i + 1
		}
	}
	return 0
}
