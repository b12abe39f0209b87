package vmtest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// BuildGuest builds the tiny init of package vmtest/guest for an architecture
// (empty: amd64) into the file out. It needs the go command and the project's
// sources in the current folder or above it.
func BuildGuest(ctx context.Context, arch, out string) error {
	return BuildProgram(ctx, arch, "initoverlayfs/vmtest/guest", out)
}

// BuildProgram builds a program of the project for guests, which is static, as
// BuildGuest does.
func BuildProgram(ctx context.Context, arch, pkg, out string) error {
	if arch == "" {
		arch = "amd64"
	}
	out, err := filepath.Abs(out)
	if err != nil {
		return fmt.Errorf("build %s: %w", pkg, err)
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", pkg, err, bytes.TrimSpace(text))
	}
	return nil
}
