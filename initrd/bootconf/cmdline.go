package bootconf

import "iter"

// Words yields the words of a kernel command line. Double quotes keep spaces
// together and are dropped, as next_arg in the kernel's lib/cmdline.c does.
func Words(cmdline string) iter.Seq[string] {
	return func(yield func(string) bool) {
		var word []byte
		quoted, started := false, false
		for i := 0; i <= len(cmdline); i++ {
			end := i == len(cmdline)
			switch {
			case end || (!quoted && isSpace(cmdline[i])):
				if started && !yield(string(word)) {
					return
				}
				word, started = word[:0], false
			case cmdline[i] == '"':
				quoted, started = !quoted, true
			default:
				word, started = append(word, cmdline[i]), true
			}
		}
	}
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == 0 }
