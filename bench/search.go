package bench

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"initoverlayfs/vmtest"
)

// searches finds the least memory of the contenders, several at once: nothing is timed.
func (r *runner) searches(ctx context.Context) error {
	var list []series
	for _, s := range r.planner.series {
		if contender(s) && !s.backend.InMemory() {
			list = append(list, s)
		}
	}
	r.o.Progress("least memory of %d scenarios, by bisection in steps of %d MiB", len(list), r.o.MemoryStepMiB)
	width := make(chan struct{}, 2)
	errs := make(chan error, len(list))
	for _, s := range list {
		go func() {
			width <- struct{}{}
			defer func() { <-width }()
			errs <- r.search(ctx, s)
		}()
	}
	var err error
	for range list {
		err = errors.Join(err, <-errs)
	}
	return err
}

// Bounds of a search, MiB.
const (
	leastMiB = 48 // with which no kernel of a distribution boots
	mostMiB  = 1024
)

func (r *runner) search(ctx context.Context, s series) error {
	search := &search{runner: r, series: s, sc: Scenario{
		Name: s.name + " (" + leastMemory + ")", Series: s.name, Kind: s.kind, Backend: string(s.backend), Set: leastMemory,
		Clock: Wall, CPUs: r.o.CPUs, Storage: vmtest.Unthrottled.Name, Append: append([]string(nil), r.o.Append...), Expect: s.expected(vmtest.MultiUser),
	}}
	r.mu.Lock() // of what the planner has made
	_, err := r.planner.arguments(ctx, s, &search.sc, variation{clock: Wall})
	if err == nil && r.results.Scenario(search.sc.Name) == nil {
		r.results.Scenarios = append(r.results.Scenarios, search.sc)
	}
	done := r.searchOf(search.sc.Name).Done
	r.mu.Unlock()
	if err != nil {
		r.planner.leave(search.sc.Name, err)
		return nil
	}
	if done {
		return nil
	}
	fails, booted := leastMiB, []int{}
	for size := mostMiB; ; {
		// The size that is left in the end has to boot twice.
		times := 1
		if len(booted) > 0 && size == booted[0] {
			times = 2
		}
		ok, err := search.try(ctx, size, times)
		if err != nil {
			return err
		}
		booted = slices.DeleteFunc(booted, func(b int) bool { return b == size })
		if ok {
			booted = slices.Insert(booted, 0, size) // the smallest so far
		} else {
			fails = size
		}
		if len(booted) == 0 || ok && times == 2 {
			break
		}
		if size = (fails + booted[0]) / 2 / r.o.MemoryStepMiB * r.o.MemoryStepMiB; size <= fails {
			size = booted[0]
		}
	}
	boots := 0
	if len(booted) > 0 {
		boots = booted[0]
	}
	return search.keep(func(m *MemorySearch) { m.FailsMiB, m.BootsMiB, m.Done = fails, boots, true })
}

func (r *runner) searchOf(name string) MemorySearch {
	i := slices.IndexFunc(r.results.Searches, func(s MemorySearch) bool { return s.Scenario == name })
	if i < 0 {
		return MemorySearch{Scenario: name}
	}
	return r.results.Searches[i]
}

// search is one bisection.
type search struct {
	*runner
	series series
	sc     Scenario
}

// keep changes what the results have of the search.
func (s *search) keep(change func(*MemorySearch)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.searchOf(s.sc.Name)
	change(&m)
	s.results.Searches = append(slices.DeleteFunc(s.results.Searches, func(o MemorySearch) bool { return o.Scenario == m.Scenario }), m)
	return s.save()
}

// try boots with so much memory, so many times in all as long as it goes well.
// Tries of an earlier start are not made again.
func (s *search) try(ctx context.Context, size, times int) (bool, error) {
	for n := range times {
		s.mu.Lock()
		tries := slices.DeleteFunc(slices.Clone(s.searchOf(s.sc.Name).Tries), func(t MemoryTrial) bool { return t.MiB != size })
		s.mu.Unlock()
		if n >= len(tries) {
			t, err := s.boot(ctx, size)
			if err != nil {
				return false, err
			}
			tries = append(tries, t)
			s.o.Progress("%s: %d MiB %s", s.sc.Name, size, map[bool]string{true: "boots", false: "fails"}[t.OK])
			if err := s.keep(func(m *MemorySearch) { m.Tries = append(m.Tries, t) }); err != nil {
				return false, err
			}
		}
		if !tries[n].OK {
			return false, nil
		}
	}
	return true, nil
}

func (s *search) boot(ctx context.Context, size int) (MemoryTrial, error) {
	if err := s.mayBegin(ctx); err != nil {
		return MemoryTrial{}, err
	}
	s.mu.Lock()
	sc := s.sc
	sc.MemoryMiB = size
	args, err := s.planner.arguments(ctx, s.series, &sc, variation{clock: Wall})
	s.mu.Unlock()
	if err != nil {
		return MemoryTrial{}, err
	}
	m, cleanup, err := s.o.Tool.Machine(ctx, args...)
	if cleanup != nil {
		defer cleanup()
	}
	if err != nil {
		return MemoryTrial{}, err
	}
	m.Expect, m.LogParent = sc.Expect, filepath.Join(s.o.Dir, "logs")
	if err := os.MkdirAll(m.LogParent, 0o777); err != nil {
		return MemoryTrial{}, err
	}
	res, err := s.o.guest(ctx, m)
	switch {
	case ctx.Err() != nil:
		return MemoryTrial{}, ctx.Err()
	case res == nil:
		return MemoryTrial{}, err
	case err == nil:
		err = sc.check(res)
	}
	t := MemoryTrial{MiB: size, OK: err == nil}
	if err != nil {
		t.Error = err.Error()
	}
	if res.LogDir == "" {
		return t, nil
	}
	return t, os.RemoveAll(res.LogDir)
}
