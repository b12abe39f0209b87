package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"initoverlayfs/install"
)

func (a *app) statusCommand() *cobra.Command {
	var m machineFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell what is installed, and how this system was booted",
		Args:  cobra.NoArgs,
		RunE: a.verb(func(ctx context.Context, _ []string) error {
			v, err := install.ReadOverview(ctx, m.options(a))
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(v)
			}
			_, err = fmt.Fprint(a.stdout, overviewText(v))
			return err
		}),
	}
	m.add(cmd.Flags())
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func overviewText(v *install.Overview) string {
	var b strings.Builder
	for _, s := range v.Kernels {
		fmt.Fprintf(&b, "kernel %s: %s", s.KernelVersion, s.Health)
		if s.Reason != "" {
			fmt.Fprintf(&b, " (%s)", s.Reason)
		}
		b.WriteByte('\n')
		if s.State == nil {
			continue
		}
		for _, g := range s.State.Generations {
			role := "current"
			if g.Number == s.State.Previous {
				role = "previous"
			}
			if g.Number == s.Booted {
				role += ", booted"
			}
			fmt.Fprintf(&b, "  generation %d (%s)\n    %s\n", g.Number, role, g.Mini)
			if g.Image != "" {
				fmt.Fprintf(&b, "    %s\n", g.Image)
			}
		}
		for _, e := range s.Entries {
			fmt.Fprintf(&b, "  entry %s\n", e)
		}
		if s.Health == install.Stale {
			fmt.Fprintf(&b, "  `initoverlayfs install %s` makes a new pair\n", s.KernelVersion)
		}
	}
	if len(v.Kernels) == 0 {
		fmt.Fprintf(&b, "nothing is installed in %s\n", v.BootDir)
	}
	switch r := v.Record; {
	case r != nil:
		fmt.Fprintf(&b, "this system was booted by storage-init: backend %s, image %s, verified %s\n", r.Backend, r.ImageUUID, r.Verified)
		for _, attempt := range r.Attempts {
			if attempt.Error != "" {
				fmt.Fprintf(&b, "  tried before: %s\n", attempt.Error)
			}
		}
		for _, p := range r.Phases {
			fmt.Fprintf(&b, "  %8.3f ms  %s\n", float64(p.EndUS-p.StartUS)/1000, p.Name)
		}
	case v.Running != "":
		b.WriteString("this system was not booted by storage-init\n")
	}
	return b.String()
}

func (a *app) verifyCommand() *cobra.Command {
	var m machineFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "verify [VERSION]...",
		Short: "Read again all that is published, and tell whether it will boot",
		Long: "Read each published file again and compare it with what was written; check the\n" +
			"image's structure, and that the mini-initramfs looks for it where it lies. Without\n" +
			"a version, all kernels. It is an error if anything is wrong.",
		RunE: a.verb(func(ctx context.Context, kernels []string) error {
			o := m.options(a)
			if len(kernels) == 0 {
				var err error
				if kernels, err = install.Kernels(o); err != nil {
					return err
				}
			}
			all := install.Verdict{Findings: []install.Finding{}, Boots: len(kernels) > 0}
			for _, kver := range kernels {
				o.KernelVersion = kver
				v, err := install.Verify(ctx, o)
				if err != nil {
					return err
				}
				all.Findings = append(all.Findings, v.Findings...)
				all.Boots = all.Boots && v.Boots
			}
			if err := a.printVerdict(&all, asJSON); err != nil {
				return err
			}
			if len(kernels) == 0 {
				return errors.New("nothing is installed")
			}
			return firstProblem(&all)
		}),
	}
	m.add(cmd.Flags())
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) printVerdict(v *install.Verdict, asJSON bool) error {
	if asJSON {
		return a.printJSON(v)
	}
	for _, f := range v.Findings {
		result := "ok"
		if f.Problem != "" {
			result = "BAD: " + f.Problem
		}
		if _, err := fmt.Fprintf(a.stdout, "%s: %s\n", f.Path, result); err != nil {
			return err
		}
	}
	return nil
}

// firstProblem is the error for a verdict, nil for a good one.
func firstProblem(v *install.Verdict) error {
	bad := 0
	var first install.Finding
	for _, f := range v.Findings {
		if f.Problem != "" {
			if bad == 0 {
				first = f
			}
			bad++
		}
	}
	if bad == 0 {
		return nil
	}
	err := fmt.Errorf("%s: %s", first.Path, first.Problem)
	if bad > 1 {
		err = fmt.Errorf("%w, and %d more", err, bad-1)
	}
	return hinted{err, "`initoverlayfs install --force " + first.KernelVersion + "` makes a new pair; the plain entry is not concerned"}
}
