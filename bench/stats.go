package bench

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"

	"gonum.org/v1/gonum/stat/distuv"
)

// tail is the probability left out at each end of an interval of 95 %.
const tail = 0.025

// Interval is a confidence interval of 95 %.
type Interval struct{ Low, High float64 }

// Summary describes the values of one metric.
type Summary struct {
	N      int
	Median float64
	// Q1 and Q3 are the quartiles.
	Q1, Q3   float64
	Min, Max float64
	// CI is the interval of the median, nil where N is below 6.
	CI *Interval
}

// Summarize describes values; of none it is the zero Summary.
//
// The interval of the median takes nothing for granted about how the values are
// distributed: the number of values below the median is binomial with p = 1/2, so
// between the k-th smallest and the k-th largest value the median lies with a
// probability of 1 - 2 P(B <= k-1); k is the largest with which that is 95 % or
// more (Conover, Practical Nonparametric Statistics, 3rd ed., 3.2).
func Summarize(values []float64) Summary {
	n := len(values)
	if n == 0 {
		return Summary{}
	}
	x := slices.Sorted(slices.Values(values))
	s := Summary{N: n, Median: quantile(x, 0.5), Q1: quantile(x, 0.25), Q3: quantile(x, 0.75), Min: x[0], Max: x[n-1]}
	below := distuv.Binomial{N: float64(n), P: 0.5}
	k := 0
	for below.CDF(float64(k)) <= tail {
		k++
	}
	if k > 0 {
		s.CI = &Interval{x[k-1], x[n-k]}
	}
	return s
}

// quantile interpolates between the two order statistics around (n-1)p, as R and
// NumPy do (Hyndman and Fan, Sample Quantiles in Statistical Packages, type 7).
// gonum's stat.Quantile has another definition, by which the median of two values
// is the smaller one.
func quantile(sorted []float64, p float64) float64 {
	at := p * float64(len(sorted)-1)
	i := int(at)
	if i+1 == len(sorted) {
		return sorted[i]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

// BootsOf gives the boots of a scenario, good or not, in the order of the run.
func (r *Results) BootsOf(s *Scenario) []*Boot {
	var boots []*Boot
	for i := range r.Boots {
		if r.Boots[i].Scenario == s.Name {
			boots = append(boots, &r.Boots[i])
		}
	}
	return boots
}

// Failures gives the boots of a scenario that failed.
func (r *Results) Failures(s *Scenario) []*Boot {
	return slices.DeleteFunc(r.BootsOf(s), func(b *Boot) bool { return b.OK })
}

// value is what statistics see of a boot of s: the times of a scenario with a
// probe are none.
func (s *Scenario) value(b *Boot, m Metric) (float64, bool) {
	if s.Memory && m.Timed {
		return 0, false
	}
	return m.Value(b)
}

// Values gives the metric of a scenario's good boots, in the order of the run.
func (r *Results) Values(s *Scenario, m Metric) []float64 {
	var values []float64
	for _, b := range r.BootsOf(s) {
		if v, ok := s.value(b, m); ok {
			values = append(values, v)
		}
	}
	return values
}

// Summary describes the metric of a scenario's good boots.
func (r *Results) Summary(s *Scenario, m Metric) Summary { return Summarize(r.Values(s, m)) }

// Ratio compares a metric of two scenarios, A over B.
type Ratio struct {
	A, B   *Scenario
	Metric Metric
	// N is how many rounds have both values. LeftOut is how many have not, though
	// at least one of the two was booted in them: a boot failed, was not made, or
	// lacks the value.
	N, LeftOut int
	// Estimate is the ratio; 0 where N is 0. CI is nil where N is below 6.
	Estimate float64
	CI       *Interval
	// Min and Max are the smallest and the largest ratio of a pair.
	Min, Max float64
}

// exactRanks is up to how many pairs the distribution is computed. The cost grows
// with the cube, and the normal approximation is good long before.
const exactRanks = 200

// Ratio compares a with b. Boots of one round were made one after the other, so
// what drifts over a run is the same for both; only such pairs are compared. It
// is an error if the two scenarios are not Comparable.
//
// With d_i the logarithms of the ratios of the pairs, the estimate is that of
// Hodges and Lehmann: the median of the n(n+1)/2 Walsh averages (d_i+d_j)/2, i <= j.
// Its interval reaches from the (c+1)-th smallest to the (c+1)-th largest of them,
// c being the largest number with P(T <= c) <= 2.5 %, where T is Wilcoxon's
// signed-rank statistic under the hypothesis of no difference (Hollander, Wolfe,
// Chicken, Nonparametric Statistical Methods, 3rd ed., 3.2 and 3.3). It asks that
// the d_i are distributed symmetrically, and of no other shape; ties make it wider.
// Each interval stands for itself: of twenty of them one is expected to be wrong.
func (r *Results) Ratio(a, b *Scenario, m Metric) (Ratio, error) {
	if err := Comparable(r, a, b); err != nil {
		return Ratio{}, err
	}
	ratio := Ratio{A: a, B: b, Metric: m}
	rounds := map[int][2]float64{}
	for side, s := range []*Scenario{a, b} {
		for _, boot := range r.BootsOf(s) {
			pair := rounds[boot.Round]
			if v, ok := s.value(boot, m); ok && v > 0 {
				pair[side] = v
			}
			rounds[boot.Round] = pair
		}
	}
	var logs []float64
	for _, round := range slices.Sorted(maps.Keys(rounds)) {
		if pair := rounds[round]; pair[0] > 0 && pair[1] > 0 {
			logs = append(logs, math.Log(pair[0]/pair[1]))
		} else {
			ratio.LeftOut++
		}
	}
	ratio.N = len(logs)
	if ratio.N == 0 {
		return ratio, nil
	}
	ratio.Min, ratio.Max = math.Exp(slices.Min(logs)), math.Exp(slices.Max(logs))
	center, ci := hodgesLehmann(logs)
	ratio.Estimate = math.Exp(center)
	if ci != nil {
		ratio.CI = &Interval{math.Exp(ci.Low), math.Exp(ci.High)}
	}
	return ratio, nil
}

// hodgesLehmann estimates where the values lie.
func hodgesLehmann(d []float64) (center float64, ci *Interval) {
	walsh := make([]float64, 0, len(d)*(len(d)+1)/2)
	for i := range d {
		for j := i; j < len(d); j++ {
			walsh = append(walsh, (d[i]+d[j])/2)
		}
	}
	slices.Sort(walsh)
	center = quantile(walsh, 0.5)
	if c := signedRankTail(len(d)); c >= 0 {
		ci = &Interval{walsh[c], walsh[len(walsh)-1-c]}
	}
	return center, ci
}

// signedRankTail gives the largest c with P(T <= c) <= 2.5 % for n pairs, -1 if
// there is none.
func signedRankTail(n int) int {
	if n > exactRanks {
		sum := float64(n) * float64(n+1)
		mean, variance := sum/4, sum*float64(2*n+1)/24
		return int(mean + distuv.UnitNormal.Quantile(tail)*math.Sqrt(variance) - 0.5)
	}
	// Of each rank k it is as likely that it is part of the sum T as that it is not.
	p := make([]float64, n*(n+1)/2+1)
	p[0] = 1
	for k := 1; k <= n; k++ {
		for t := k * (k + 1) / 2; t >= 0; t-- {
			p[t] /= 2
			if t >= k {
				p[t] += p[t-k] / 2
			}
		}
	}
	c, below := -1, 0.0
	for _, at := range p {
		if below += at; below > tail {
			break
		}
		c++
	}
	return c
}

// Verdict is what a ratio shows.
type Verdict int

// The verdicts.
const (
	// TooFew is said where there are too few pairs for an interval.
	TooFew Verdict = iota
	// NoDifference is not shown to be there: the interval has 1 in it, or is wide.
	NoDifference
	Better
	Worse
)

// wide is the factor over which an interval may reach if it ends nearer to 1 than
// by the same factor: otherwise the boots differ too much among themselves for its
// end to be believed.
const wide = 1.5

// Verdict says what the ratio shows for A.
func (r Ratio) Verdict() Verdict {
	if r.CI == nil {
		return TooFew
	}
	low, high := r.CI.Low, r.CI.High
	if low <= 1 && high >= 1 || high/low > wide && high > 1/wide && low < wide {
		return NoDifference
	}
	if (high < 1) == r.Metric.LowerIsBetter {
		return Better
	}
	return Worse
}

// Word is the verdict in a word or two.
func (r Ratio) Word() string {
	switch v := r.Verdict(); {
	case v == TooFew:
		return "too few"
	case v == NoDifference:
		return "no difference shown"
	case r.Metric.Unit == Bytes || r.Metric.Unit == Kilobytes || r.Metric.Unit == DiskRequests:
		if r.Estimate < 1 {
			return "less"
		}
		return "more"
	case v == Better:
		return "faster"
	default:
		return "slower"
	}
}

// Numbers gives the estimate and its interval, "0.93 (0.91-0.95)", with as many
// digits as it takes to tell the interval's ends from 1. Without an interval it is
// the estimate.
func (r Ratio) Numbers() string {
	if r.CI == nil {
		return fmt.Sprintf("%.3f", r.Estimate)
	}
	for digits := 2; ; digits++ {
		text := fmt.Sprintf("%.*f", digits, r.Estimate)
		one := fmt.Sprintf("%.*f", digits, 1.0)
		low, high := fmt.Sprintf("%.*f", digits, r.CI.Low), fmt.Sprintf("%.*f", digits, r.CI.High)
		if digits == 5 || (low != one || r.CI.Low == 1) && (high != one || r.CI.High == 1) {
			return text + " (" + low + "-" + high + ")"
		}
	}
}

// Sentence says the ratio in plain words: "block is 0.93 (0.91-0.95) of plain
// lz4, N=20: faster".
func (r Ratio) Sentence() string {
	n := fmt.Sprintf("N=%d", r.N)
	if r.LeftOut > 0 {
		n += fmt.Sprintf(", %d left out", r.LeftOut)
	}
	switch r.Verdict() {
	case TooFew:
		if r.N == 0 {
			return fmt.Sprintf("%s against %s: no round in which both have the figure (%s)", r.A.Series, r.B.Series, n)
		}
		return fmt.Sprintf("%s against %s: too few boots to tell (estimate %s, pairs from %.3f to %.3f, %s)", r.A.Series, r.B.Series, r.Numbers(), r.Min, r.Max, n)
	case NoDifference:
		return fmt.Sprintf("%s against %s: no difference shown, %s, %s", r.A.Series, r.B.Series, r.Numbers(), n)
	}
	return fmt.Sprintf("%s is %s of %s, %s: %s", r.A.Series, r.Numbers(), r.B.Series, n, r.Word())
}

// MedianBoot gives the good boot of s that lies in the middle by m, the lower one
// of two, nil if no boot has the figure.
func (r *Results) MedianBoot(s *Scenario, m Metric) *Boot {
	boots := slices.DeleteFunc(r.BootsOf(s), func(b *Boot) bool { _, ok := s.value(b, m); return !ok })
	if len(boots) == 0 {
		return nil
	}
	slices.SortStableFunc(boots, func(a, b *Boot) int {
		x, _ := m.Value(a)
		y, _ := m.Value(b)
		return cmp.Compare(x, y)
	})
	return boots[(len(boots)-1)/2]
}
