package report

import (
	"fmt"
	"strings"
)

// markdown renders the document without its plots.
func (d *document) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n", escapeMarkdown(d.Title))
	factsMarkdown(&b, d.Facts)
	for _, s := range d.Sections {
		level := "##"
		if s.Under {
			level = "###"
		}
		fmt.Fprintf(&b, "\n%s %s\n", level, escapeMarkdown(s.Title))
		if len(s.Facts) > 0 {
			b.WriteString("\n")
			factsMarkdown(&b, s.Facts)
		}
		for _, text := range s.Text {
			fmt.Fprintf(&b, "\n%s\n", escapeMarkdown(text))
		}
		for _, f := range s.Findings {
			fmt.Fprintf(&b, "\n**%s**\n\n", escapeMarkdown(f.Title))
			for _, item := range f.Items {
				fmt.Fprintf(&b, "- %s\n", escapeMarkdown(item.Text))
			}
		}
		for _, t := range s.Tables {
			t.markdown(&b)
		}
	}
	return b.String()
}

func factsMarkdown(b *strings.Builder, facts []fact) {
	for _, f := range facts {
		fmt.Fprintf(b, "- **%s**: %s\n", escapeMarkdown(f.Name), escapeMarkdown(f.Value))
	}
}

func (t *table) markdown(b *strings.Builder) {
	fmt.Fprintf(b, "\n%s:\n\n", escapeMarkdown(t.Title))
	row := func(cells []string) {
		for _, cell := range cells {
			fmt.Fprintf(b, "| %s ", escapeMarkdown(cell))
		}
		b.WriteString("|\n")
	}
	row(t.Head)
	b.WriteString("|---" + strings.Repeat("|--:", len(t.Head)-1) + "|\n")
	for _, cells := range t.Rows {
		row(cells)
	}
}

// markdownSpecial are the characters that Markdown, and HTML inside it, would
// take for their own.
var markdownSpecial = strings.NewReplacer(
	`\`, `\\`, "`", "\\`", "*", `\*`, "_", `\_`, "[", `\[`, "]", `\]`, "<", "&lt;", ">", "&gt;", "&", "&amp;", "|", `\|`, "#", `\#`, "~", `\~`, "$", `\$`,
)

func escapeMarkdown(s string) string { return markdownSpecial.Replace(oneLine(s)) }

// oneLine replaces what would begin a new line, and what is no text.
func oneLine(s string) string {
	return strings.Join(strings.Fields(clean(s)), " ")
}

// clean replaces what neither XML nor a terminal takes for text. Lines stay.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 || r == 0xfffe || r == 0xffff {
			return '\ufffd'
		}
		return r
	}, strings.ToValidUTF8(s, "\ufffd"))
}
