package main

import (
	"context"
	"github.com/spf13/pflag"
)

func (a *app) embedded(ctx context.Context, f *diskFlags, p *pflag.FlagSet) error { return nil }
