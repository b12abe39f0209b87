package report

import (
	_ "embed" // the page and its style
	"html/template"
	"strings"
)

var (
	//go:embed page.html
	pageText string
	//go:embed page.css
	pageStyle string
)

// html renders the document as one page that needs nothing else.
func (d *document) html() (string, error) {
	page, err := template.New("page").Funcs(template.FuncMap{
		// The plots are made here, and their text was escaped then.
		"svg":   func(s string) template.HTML { return template.HTML(s) },
		"color": func(s string) template.CSS { return template.CSS(s) },
		"style": func() template.CSS { return template.CSS(pageStyle) },
	}).Parse(pageText)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	if err := page.Execute(&b, d); err != nil {
		return "", err
	}
	return clean(b.String()), nil
}
