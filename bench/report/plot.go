package report

import (
	"cmp"
	"fmt"
	"html"
	"image/color"
	"math"
	"regexp"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

const (
	plotWidth  = 640
	plotHeight = 360
	fontSize   = 12
)

// ink is drawn in the colour that the page has for text, light or dark; grid fits
// both.
var (
	ink  = color.NRGBA{0x20, 0x21, 0x24, 0xff}
	grid = color.NRGBA{0x80, 0x80, 0x80, 0x50}
)

// hues are those of Okabe and Ito that are legible on light and on dark paper:
// people who do not see all colours can tell them apart.
var hues = []color.NRGBA{
	{0x00, 0x72, 0xb2, 0xff}, {0xd5, 0x5e, 0x00, 0xff}, {0x00, 0x9e, 0x73, 0xff},
	{0xcc, 0x79, 0xa7, 0xff}, {0xe6, 0x9f, 0x00, 0xff}, {0x56, 0xb4, 0xe9, 0xff},
}

// grey is what is compared with: series in it differ by their dashes.
var grey = color.NRGBA{0x85, 0x85, 0x85, 0xff}

var dashes = [][]vg.Length{{8, 3}, {2, 2.5}, {8, 3, 2, 3}, {14, 4}, {4, 2, 1, 2, 1, 2}, nil}

// Ours have glyphs that are filled.
var (
	filledGlyphs = []draw.GlyphDrawer{draw.CircleGlyph{}, draw.BoxGlyph{}, draw.PyramidGlyph{}}
	hollowGlyphs = []draw.GlyphDrawer{draw.RingGlyph{}, draw.SquareGlyph{}, draw.TriangleGlyph{}, draw.CrossGlyph{}, draw.PlusGlyph{}}
)

// look is how a series is drawn, in every plot.
type look struct {
	color color.NRGBA
	dash  []vg.Length
	glyph draw.GlyphDrawer
}

func hex(c color.NRGBA) string { return fmt.Sprintf("#%02x%02x%02x", c.R, c.G, c.B) }

func textStyle() text.Style {
	return text.Style{Color: ink, Font: font.From(font.Font{Typeface: "Liberation", Variant: "Sans"}, fontSize), Handler: plot.DefaultTextHandler}
}

// room is how wide a text may be: readers may have a wider font than the one that
// it is measured in.
func room(text string) vg.Length { return textStyle().Width(text) * 1.2 }

// newPlot gives an empty plot in the style of the report.
func newPlot(xTitle, yTitle string) *plot.Plot {
	p := plot.New()
	p.BackgroundColor = nil
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.LineStyle = draw.LineStyle{Color: ink, Width: 0.75}
		axis.Tick.LineStyle = axis.LineStyle
		axis.Tick.Length = 4
		axis.Tick.Label.Font = textStyle().Font
		axis.Tick.Label.Color = ink
		axis.Label.TextStyle.Font = textStyle().Font
		axis.Label.TextStyle.Color = ink
		axis.Label.Padding = 4
	}
	p.X.Label.Text, p.Y.Label.Text = xTitle, yTitle
	p.Y.Tick.Marker = numberTicks{}
	p.X.Tick.Marker = numberTicks{}
	return p
}

// numberTicks are about five round numbers.
type numberTicks struct{}

// Ticks implements plot.Ticker.
func (numberTicks) Ticks(low, high float64) []plot.Tick {
	size := math.Floor(math.Log10((high - low) / 5))
	step := math.Pow(10, size)
	for _, times := range []float64{2, 2.5, 2} { // 2, 5, 10
		if (high-low)/step > 6 {
			step *= times
		}
	}
	var ticks []plot.Tick
	digits := max(0, -int(math.Floor(math.Log10(step)+1e-9)))
	for n := math.Ceil(low/step - 1e-9); n*step <= high+step*1e-9; n++ {
		ticks = append(ticks, plot.Tick{Value: n * step, Label: fmt.Sprintf("%.*f", digits, n*step+0)})
	}
	return ticks
}

var (
	svgHead = regexp.MustCompile(`(?s)^.*?<svg [^>]*>`)
	svgFont = regexp.MustCompile(`font-family:[^;"]*;font-variant:[^;"]*;`)
)

// svg draws the plot. It has no size of its own but that of its place on the page.
func svg(p *plot.Plot, title string, height vg.Length) (string, error) {
	c := vgsvg.New(plotWidth, height)
	p.Draw(draw.Crop(draw.New(c), 4, -4, 4, -6))
	var b strings.Builder
	if _, err := c.WriteTo(&b); err != nil {
		return "", err
	}
	head := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %g" role="img" aria-label="%s">`,
		plotWidth, height.Points(), html.EscapeString(oneLine(title)))
	s := svgHead.ReplaceAllLiteralString(clean(b.String()), head)
	s = svgFont.ReplaceAllLiteralString(s, "font-family:Liberation Sans,Arimo,Arial,sans-serif;")
	return strings.ReplaceAll(s, strings.ToUpper(hex(ink)), "currentColor"), nil
}

// gridLines are drawn below the data.
type gridLines struct{ vertical, horizontal bool }

// Plot implements plot.Plotter.
func (g gridLines) Plot(c draw.Canvas, p *plot.Plot) {
	style := draw.LineStyle{Color: grid, Width: 0.75}
	x, y := p.Transforms(&c)
	if g.vertical {
		for _, t := range p.X.Tick.Marker.Ticks(p.X.Min, p.X.Max) {
			if at := x(t.Value); c.ContainsX(at) {
				c.StrokeLine2(style, at, c.Min.Y, at, c.Max.Y)
			}
		}
	}
	if g.horizontal {
		for _, t := range p.Y.Tick.Marker.Ticks(p.Y.Min, p.Y.Max) {
			if at := y(t.Value); c.ContainsY(at) {
				c.StrokeLine2(style, c.Min.X, at, c.Max.X, at)
			}
		}
	}
}

// nameRows names rows from the top down: row i is at len(names)-1-i.
func nameRows(p *plot.Plot, names []string) {
	ticks := make(plot.ConstantTicks, len(names))
	for i, name := range names {
		ticks[i] = plot.Tick{Value: float64(len(names) - 1 - i), Label: shorten(name)}
	}
	p.Y.Tick.Marker = ticks
	p.Y.Tick.Length = 0
	p.Y.Width = 0
	p.Y.Min, p.Y.Max = -0.6, float64(len(names))-0.4
	p.Y.Padding = 6
	for _, tick := range ticks { // a name that is wider than it was measured ends in the padding
		p.Y.Padding = max(p.Y.Padding, 4+room(tick.Label)-textStyle().Width(tick.Label))
	}
}

// shorten keeps names from taking the room of the data.
func shorten(name string) string {
	runes := []rune(oneLine(name))
	if len(runes) > 28 {
		return string(runes[:27]) + "…"
	}
	return string(runes)
}

func rowsHeight(n int) vg.Length { return vg.Length(60 + 28*n) }

// bar is one row of stacked lengths.
type bar struct {
	name  string
	parts []part
}

type part struct {
	length float64
	color  color.NRGBA
}

// bars draws rows of stacked lengths, each with its sum at its end.
type bars struct {
	rows   []bar
	format func(float64) string
}

// Plot implements plot.Plotter.
func (b bars) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	style := textStyle()
	style.YAlign = draw.YCenter
	for i, row := range b.rows {
		middle := y(float64(len(b.rows) - 1 - i))
		sum := 0.0
		for _, part := range row.parts {
			begin, end := x(sum), x(sum+part.length)
			sum += part.length
			c.FillPolygon(part.color, []vg.Point{{X: begin, Y: middle - 9}, {X: end, Y: middle - 9}, {X: end, Y: middle + 9}, {X: begin, Y: middle + 9}})
			inside := style
			inside.XAlign = draw.XCenter
			inside.Color = contrasting(part.color)
			if label := b.format(part.length); len(row.parts) > 1 && room(label)+4 < end-begin {
				c.FillText(inside, vg.Point{X: (begin + end) / 2, Y: middle}, label)
			}
		}
		c.FillText(style, vg.Point{X: x(sum) + 5, Y: middle}, b.format(sum))
	}
}

// DataRange implements plot.DataRanger.
func (b bars) DataRange() (xmin, xmax, ymin, ymax float64) {
	return 0, b.longest(), 0, float64(len(b.rows) - 1)
}

func (b bars) longest() float64 {
	longest := 0.0
	for _, row := range b.rows {
		sum := 0.0
		for _, part := range row.parts {
			sum += part.length
		}
		longest = max(longest, sum)
	}
	return longest
}

// GlyphBoxes implements plot.GlyphBoxer: the sums need room.
func (b bars) GlyphBoxes(*plot.Plot) []plot.GlyphBox {
	return []plot.GlyphBox{{X: 1, Rectangle: vg.Rectangle{Max: vg.Point{X: room(b.format(b.longest())) + 8}}}}
}

// contrasting is black or white, whichever is legible on c.
func contrasting(c color.NRGBA) color.Color {
	if 299*int(c.R)+587*int(c.G)+114*int(c.B) > 128_000 {
		return color.NRGBA{0x11, 0x11, 0x11, 0xff}
	}
	return color.White
}

func barPlot(title, axis string, rows []bar, format func(float64) string) (string, error) {
	p := newPlot(axis, "")
	b := bars{rows, format}
	p.Add(gridLines{vertical: true}, b)
	p.X.Min = 0
	var names []string
	for _, row := range rows {
		names = append(names, row.name)
	}
	nameRows(p, names)
	return svg(p, title, rowsHeight(len(rows)))
}

// estimate is one row of a forest plot: a ratio with its interval.
type estimate struct {
	name           string
	text           string
	low, mid, high float64 // low and high are 0 without an interval
	color          color.NRGBA
	glyph          draw.GlyphDrawer
}

// forest draws estimates around 1.
type forest struct{ rows []estimate }

// Plot implements plot.Plotter.
func (f forest) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	c.StrokeLine2(draw.LineStyle{Color: ink, Width: 1.25}, x(1), c.Min.Y, x(1), c.Max.Y)
	style := textStyle()
	style.YAlign = draw.YCenter
	for i, row := range f.rows {
		at := y(float64(len(f.rows) - 1 - i))
		line := draw.LineStyle{Color: row.color, Width: 2.5}
		if row.low > 0 {
			c.StrokeLine2(line, x(row.low), at, x(row.high), at)
			for _, end := range []float64{row.low, row.high} {
				c.StrokeLine2(line, x(end), at-4, x(end), at+4)
			}
		}
		c.DrawGlyphNoClip(draw.GlyphStyle{Color: row.color, Radius: 5, Shape: row.glyph}, vg.Point{X: x(row.mid), Y: at})
		c.FillText(style, vg.Point{X: c.Max.X + 10, Y: at}, row.text)
	}
}

// DataRange implements plot.DataRanger.
func (f forest) DataRange() (xmin, xmax, ymin, ymax float64) {
	xmin, xmax = 1, 1
	for _, row := range f.rows {
		xmin, xmax = min(xmin, row.mid), max(xmax, row.mid)
		if row.low > 0 {
			xmin, xmax = min(xmin, row.low), max(xmax, row.high)
		}
	}
	margin := max(0.005, (xmax-xmin)/12)
	return xmin - margin, xmax + margin, 0, float64(len(f.rows) - 1)
}

// GlyphBoxes implements plot.GlyphBoxer: the texts need room.
func (f forest) GlyphBoxes(*plot.Plot) []plot.GlyphBox {
	var width vg.Length
	for _, row := range f.rows {
		width = max(width, room(row.text))
	}
	return []plot.GlyphBox{{X: 1, Rectangle: vg.Rectangle{Max: vg.Point{X: width + 12}}}}
}

func forestPlot(title, axis string, rows []estimate) (string, error) {
	p := newPlot(axis, "")
	p.Add(gridLines{vertical: true}, forest{rows})
	var names []string
	for _, row := range rows {
		names = append(names, row.name)
	}
	nameRows(p, names)
	return svg(p, title, rowsHeight(len(rows)))
}

// line is a series over the points of a sweep.
type line struct {
	name   string
	look   look
	points []point
}

// point is a median, with its interval where low and high differ.
type point struct {
	x            float64
	y, low, high float64
}

// place is where a point of a sweep lies on the axis.
type place struct {
	x     float64
	label string
}

// linePlot draws lines over places.
func linePlot(title, xTitle, yTitle string, places []place, logarithmic bool, lines []line) (string, error) {
	p := newPlot(xTitle, yTitle)
	if logarithmic {
		p.X.Scale = plot.LogScale{}
	}
	p.X.Min, p.X.Max = places[0].x, places[len(places)-1].x
	p.X.Tick.Marker = placeTicks(p, places)
	p.X.Padding, p.Y.Padding = 6, 8
	low, high := math.Inf(1), 0.0
	for _, l := range lines {
		for _, at := range l.points {
			low, high = min(low, at.low), max(high, at.high)
		}
	}
	p.Y.Min, p.Y.Max = low-(high-low)/20, high+(high-low)/20
	if low < high/2 {
		p.Y.Min = 0
	}
	p.Add(gridLines{horizontal: true}, endLabels{lines})
	for _, l := range lines {
		var xys plotter.XYs
		var bars plotter.YErrors
		for _, at := range l.points {
			xys = append(xys, plotter.XY{X: at.x, Y: at.y})
			bars = append(bars, struct{ Low, High float64 }{at.y - at.low, at.high - at.y})
		}
		curve, dots, err := plotter.NewLinePoints(xys)
		if err != nil {
			return "", err
		}
		curve.LineStyle = draw.LineStyle{Color: l.look.color, Width: 2, Dashes: l.look.dash}
		dots.GlyphStyle = draw.GlyphStyle{Color: l.look.color, Radius: 4, Shape: l.look.glyph}
		errors, err := plotter.NewYErrorBars(struct {
			plotter.XYs
			plotter.YErrors
		}{xys, bars})
		if err != nil {
			return "", err
		}
		errors.LineStyle = draw.LineStyle{Color: l.look.color, Width: 1.25}
		errors.CapWidth = 7
		p.Add(curve, dots, errors)
	}
	return svg(p, title, plotHeight)
}

// placeTicks names the places, but not one on top of another.
func placeTicks(p *plot.Plot, places []place) plot.ConstantTicks {
	var ticks plot.ConstantTicks
	free := math.Inf(-1) // from where on there is room, on an axis of about 440 points
	for _, at := range places {
		label := shorten(at.label)
		middle := 440 * p.X.Norm(at.x)
		half := room(label).Points()/2 + 3
		if middle-half < free {
			label = ""
		} else {
			free = middle + half
		}
		ticks = append(ticks, plot.Tick{Value: at.x, Label: label})
	}
	return ticks
}

// endLabels names lines at their right ends, not one name over another.
type endLabels struct{ lines []line }

const labelHeight = fontSize + 3

// Plot implements plot.Plotter.
func (e endLabels) Plot(c draw.Canvas, p *plot.Plot) {
	_, y := p.Transforms(&c)
	type label struct {
		at, end vg.Length
		line    line
	}
	var labels []label
	for _, l := range e.lines {
		end := y(l.points[len(l.points)-1].y)
		labels = append(labels, label{end, end, l})
	}
	slices.SortStableFunc(labels, func(a, b label) int { return cmp.Compare(a.at, b.at) })
	for i := 1; i < len(labels); i++ {
		labels[i].at = max(labels[i].at, labels[i-1].at+labelHeight)
	}
	// What was pushed out at the top goes down again.
	top := c.Max.Y + 6
	for i := len(labels) - 1; i >= 0; i-- {
		labels[i].at = min(labels[i].at, top)
		top = labels[i].at - labelHeight
	}
	for _, l := range labels {
		x := c.Max.X + 8
		c.StrokeLine2(draw.LineStyle{Color: l.line.look.color, Width: 2}, x, l.end, x+10, l.at)
		style := textStyle()
		style.YAlign = draw.YCenter
		c.FillText(style, vg.Point{X: x + 13, Y: l.at}, shorten(l.line.name))
	}
}

// GlyphBoxes implements plot.GlyphBoxer: the names need room.
func (e endLabels) GlyphBoxes(*plot.Plot) []plot.GlyphBox {
	var width vg.Length
	for _, l := range e.lines {
		width = max(width, room(shorten(l.name)))
	}
	return []plot.GlyphBox{{X: 1, Rectangle: vg.Rectangle{Max: vg.Point{X: width + 24}}}}
}
