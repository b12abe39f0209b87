package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"initoverlayfs/builder"
	"initoverlayfs/initrd/bootconf"
	"initoverlayfs/initrd/erofs"
)

func (a *app) imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Make and inspect EROFS images",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return usageErrorf("image: no command given")
		},
	}
	cmd.AddCommand(a.imageCreateCommand(), a.imageInfoCommand())
	cmd.AddCommand(a.imageReadCommands()...)
	return cmd
}

// layoutFlags are the flags that decide over an image's bytes.
type layoutFlags struct {
	compress string
	pcluster int
	features string
	kernel   string
	mkfs     string
	blobs    string
	boot     string
}

// add adds the flags; kernel says for which one the image is made by default.
func (l *layoutFlags) add(f *pflag.FlagSet, kernel string) {
	d := builder.DefaultImageOptions()
	f.StringVar(&l.compress, "image-compress", d.Compress.String(), "`ALGORITHM` of the image: lz4hc[,LEVEL], lz4 or none")
	f.IntVar(&l.pcluster, "pcluster", d.PclusterBytes, "largest compressed cluster in `BYTES`, a power of two")
	f.StringVar(&l.features, "image-features", "", "`LIST` of what makes an image smaller: holes; compressed ones: ztailpacking,\n"+
		"fragments[=BYTES], dedupe; others: chunks[=BYTES]. Each also with no- in front\n"+
		"(default: all that the kernel knows, but for chunks; with mkfs.erofs none)")
	f.StringVar(&l.kernel, "kernel-version", "", "oldest Linux `VERSION` that has to read the image (default "+kernel+")")
	f.StringVar(&l.blobs, "blobs", "", "`DIR` of blobs, which images share: contents that none of them has make a new one\n"+
		"(needs --image-compress none and Linux 5.16)")
	f.StringVar(&l.boot, "boot-files", "auto", "`LIST` of what every boot reads, which lies in front and is not compressed: init for\n"+
		"the init, the programs that it always starts and their libraries; none; or a file with a\n"+
		"path a line, in the order of their use. auto is init for build with a compressed\n"+
		"image that is only read from persistent memory, where it saves time; from a disk there\n"+
		"would be more to read")
	f.StringVar(&l.mkfs, "mkfs", "native", "image `PRODUCER`: native or mkfs.erofs")
}

// forDAX makes the image one that pmem-dax can map, unless the flags say otherwise.
func (l *layoutFlags) forDAX(f *pflag.FlagSet) error {
	if !f.Changed("image-compress") {
		l.compress = "none"
	} else if l.compress != "none" {
		return usageErrorf("the backend pmem-dax needs --image-compress none")
	}
	return nil
}

func (l *layoutFlags) options() (builder.Producer, builder.ImageOptions, error) {
	producer, err := builder.ProducerNamed(l.mkfs)
	if err != nil {
		return nil, builder.ImageOptions{}, usageErrorf("--mkfs: %v", err)
	}
	o := builder.ImageOptions{PclusterBytes: l.pcluster, BlobDir: l.blobs}
	if o.Compress, err = builder.ParseImageCompression(l.compress); err != nil {
		return nil, o, usageErrorf("--image-compress: %v", err)
	}
	if o.Features, err = builder.ParseImageFeatures(l.features); err != nil {
		return nil, o, usageErrorf("--image-features: %v", err)
	}
	if l.boot != "auto" {
		if o.BootFiles, err = builder.ParseBootFiles(l.boot); err != nil {
			return nil, o, fmt.Errorf("--boot-files: %w", err)
		}
	}
	if l.kernel != "" {
		if o.Kernel, err = erofs.ParseKernelVersion(l.kernel); err != nil {
			return nil, o, usageErrorf("--kernel-version: %v", err)
		}
	}
	if err := o.Check(); err != nil {
		return nil, o, usageErrorf("--pcluster: %v", err)
	}
	return producer, o, nil
}

func (a *app) imageCreateCommand() *cobra.Command {
	var layout layoutFlags
	var uuid, label string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "create SRC OUT",
		Short: "Make the image of a directory or of an initramfs archive",
		Long: "Make the EROFS image OUT of SRC, a directory or an initramfs archive in any\n" +
			"compression that the kernel knows. OUT appears complete or not at all. Root\n" +
			"is not needed: owners and device nodes of an archive are kept. Of a directory,\n" +
			"extended attributes and parts of seconds are kept, too; its files are read when\n" +
			"they are packed, and one that changes meanwhile is an error.\n\n" +
			"The image has what the kernel named by --kernel-version can read, and nothing\n" +
			"that came later. Linux 5.15 brought holes and chunks, 5.17 ztailpacking, 6.1\n" +
			"fragments and dedupe.",
		Args: cobra.ExactArgs(2),
		RunE: a.verb(func(ctx context.Context, args []string) error {
			producer, options, err := layout.options()
			if err != nil {
				return err
			}
			if uuid != "" {
				u, err := bootconf.ParseUUID(uuid)
				if err != nil {
					return usageErrorf("--uuid: %v", err)
				}
				options.UUID = &u
			}
			options.Label = label
			if err := options.Check(); err != nil {
				return usageErrorf("--label: %v", err)
			}
			epoch, err := a.sourceDateEpoch()
			if err != nil {
				return err
			}
			src, err := builder.SourceAt(args[0])
			if err != nil {
				return err
			}
			a.progress("making the image of %s", args[0])
			image, err := builder.CreateImage(ctx, src, args[1], producer, options, epoch)
			if err != nil {
				return err
			}
			return a.printImage(args[1], image, asJSON)
		}),
	}
	layout.add(cmd.Flags(), builder.BaselineKernel.String()+", on every machine")
	cmd.Flags().StringVar(&uuid, "uuid", "", "`UUID` of the image (default: derived from what goes into it)")
	cmd.Flags().StringVar(&label, "label", "", fmt.Sprintf("`NAME` of the volume, at most %d bytes", erofs.MaxLabel))
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the image's description as JSON")
	return cmd
}

func (a *app) imageInfoCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "info IMAGE",
		Short: "Print what the superblock of an image says",
		Args:  cobra.ExactArgs(1),
		RunE: a.verb(func(_ context.Context, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			image, err := builder.InspectImage(f)
			if err != nil {
				return err
			}
			return a.printImage(args[0], image, asJSON)
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// imageJSON is the document of `image info --json` and `image create --json`.
type imageJSON struct {
	File       string   `json:"file"`
	Size       int64    `json:"size"` // bytes
	UUID       string   `json:"uuid"`
	SHA256     string   `json:"sha256,omitempty"` // not of one that was made a moment ago
	VolumeName string   `json:"volume_name"`
	BlockSize  int64    `json:"block_size"` // bytes
	Blocks     uint64   `json:"blocks"`
	Inodes     uint64   `json:"inodes"`
	BuildTime  int64    `json:"build_time"` // seconds since 1970
	Features   []string `json:"features"`
	DAX        bool     `json:"dax"` // nothing in it is compressed
	// Devices are the blobs that have its data, in the order of its table.
	Devices []deviceJSON `json:"devices,omitempty"`
}

type deviceJSON struct {
	Tag    string `json:"tag"` // of a blob: the SHA-256 of its content
	Blocks uint64 `json:"blocks"`
}

func (a *app) printImage(path string, image builder.Image, asJSON bool) error {
	doc := imageJSON{
		File:       path,
		Size:       image.SizeBytes,
		UUID:       image.UUID.String(),
		SHA256:     image.SHA256,
		VolumeName: image.VolumeName,
		BlockSize:  image.BlockSize(),
		Blocks:     image.Blocks,
		Inodes:     image.Inos,
		BuildTime:  image.BuildTime,
		Features:   image.Features(),
		DAX:        !image.Compressed(),
	}
	for _, d := range image.Devices {
		doc.Devices = append(doc.Devices, deviceJSON{d.Tag, d.Blocks})
	}
	if asJSON {
		return a.printJSON(doc)
	}
	built := time.Unix(doc.BuildTime, int64(image.BuildTimeNsec)).UTC().Format(time.RFC3339)
	for _, row := range [][2]string{
		{"file", doc.File},
		{"size", fmt.Sprintf("%d bytes", doc.Size)},
		{"uuid", doc.UUID},
		{"sha256", doc.SHA256},
		{"volume", doc.VolumeName},
		{"blocks", fmt.Sprintf("%d of %d bytes", doc.Blocks, doc.BlockSize)},
		{"inodes", fmt.Sprint(doc.Inodes)},
		{"built", built},
		{"features", strings.Join(doc.Features, " ")},
	} {
		if row[1] == "" {
			continue
		}
		if _, err := fmt.Fprintf(a.stdout, "%-10s%s\n", row[0], row[1]); err != nil {
			return err
		}
	}
	for _, d := range doc.Devices {
		if _, err := fmt.Fprintf(a.stdout, "%-10s%s  %d blocks\n", "device", printable(d.Tag), d.Blocks); err != nil {
			return err
		}
	}
	return nil
}
