/*
 * The least that PID 1 can do between the kernel and the full tree: the system
 * calls without which the tree's init would not run, and not one of storage-init's
 * checks, searches, alternatives, reports and clean-ups. Where a call fails, it
 * ends, and the kernel panics.
 *
 * plan.h, which floor.go writes, has MODULES, BACKEND, IMAGE, DEVICE, OPTIONS and
 * INIT.
 */
#include "plan.h"

#ifndef __x86_64__
#error "system calls are written for x86-64"
#endif

/* From the kernel's tables and headers, which need not be installed. */
enum { sys_read, sys_write, sys_open, sys_close };
enum { sys_execve = 59, sys_exit = 60, sys_chdir = 80, sys_mkdir = 83, sys_chroot = 161, sys_mount = 165, sys_umount2 = 166, sys_finit_module = 313 };
enum { ms_rdonly = 0x1, ms_nosuid = 0x2, ms_nodev = 0x4, ms_noexec = 0x8, ms_move = 0x2000, mnt_detach = 2 };
enum { o_rdonly = 0, o_wronly = 1 };

static long call(long number, const void *a, const void *b, const void *c, long d, const void *e)
{
	register long r10 __asm__("r10") = d;
	register const void *r8 __asm__("r8") = e;
	long result;

	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
	return result;
}

static void quit(void)
{
	for (;;)
		call(sys_exit, (void *)1, 0, 0, 0, 0);
}

static long need(long result)
{
	if (result < 0)
		quit();
	return result;
}

static long open(const char *path, long flags) { return need(call(sys_open, path, (void *)flags, 0, 0, 0)); }
static void close(long fd) { call(sys_close, (void *)fd, 0, 0, 0, 0); }
static void mkdir(const char *path) { call(sys_mkdir, path, (void *)0755, 0, 0, 0); }
static void detach(const char *path) { need(call(sys_umount2, path, (void *)mnt_detach, 0, 0, 0)); }

static void mount(const char *source, const char *target, const char *type, long flags, const char *options)
{
	need(call(sys_mount, source, target, type, flags, options));
}

static void load(const char *path, const char *options)
{
	long fd = open(path, o_rdonly);

	need(call(sys_finit_module, (void *)fd, options, 0, 0, 0));
	close(fd);
}

/* How long the kernel waits is no matter of system calls: both sides wait shortly. */
static void hurry(const char *value)
{
	long fd = open("/sys/kernel/rcu_expedited", o_wronly);

	call(sys_write, (void *)fd, value, (void *)1, 0, 0);
	close(fd);
}

static const char line[] = "<6>storage-init: handover backend=" BACKEND " image=" IMAGE " verified=none us=0\n";

__attribute__((used)) static void boot(char **stack)
{
	char **argv = stack + 1, **envp = argv + (long)stack[0] + 1;
	char byte;
	long fd;

	mount("devtmpfs", "/dev", "devtmpfs", ms_nosuid, "mode=0755");
	mount("proc", "/proc", "proc", ms_nosuid | ms_nodev | ms_noexec, 0);
	mount("sysfs", "/sys", "sysfs", ms_nosuid | ms_nodev | ms_noexec, 0);
	mount("tmpfs", "/run", "tmpfs", ms_nosuid | ms_nodev, "mode=0755");
	hurry("1");
#define MODULE(path, options) load(path, options);
	MODULES
#undef MODULE
#ifdef WAIT
	/* The kernel probes the device in the background; this ends when it has. */
	fd = open(WAIT, o_rdonly);
	call(sys_read, (void *)fd, &byte, (void *)1, 0, 0);
	close(fd);
#endif
	mount(DEVICE, "/lower", "erofs", ms_rdonly, OPTIONS);
	mount("tmpfs", "/overlay", "tmpfs", 0, "mode=0755");
	mkdir("/overlay/upper");
	mkdir("/overlay/work");
	mount("overlay", "/sysroot", "overlay", 0, "lowerdir=/lower,upperdir=/overlay/upper,workdir=/overlay/work");
	hurry("0");
	mount("/run", "/sysroot/run", 0, ms_move, 0);
	mount("/sys", "/sysroot/sys", 0, ms_move, 0);
	mount("/proc", "/sysroot/proc", 0, ms_move, 0);
	fd = open("/dev/kmsg", o_wronly);
	mount("/dev", "/sysroot/dev", 0, ms_move, 0);
	detach("/lower");
	detach("/overlay");
	call(sys_write, (void *)fd, line, (void *)(sizeof line - 1), 0, 0);
	close(fd);
	need(call(sys_chdir, "/sysroot", 0, 0, 0, 0));
	mount(".", "/", 0, ms_move, 0);
	need(call(sys_chroot, ".", 0, 0, 0, 0));
	need(call(sys_chdir, "/", 0, 0, 0, 0));
	argv[0] = INIT;
	call(sys_execve, INIT, argv, envp, 0, 0);
	quit();
}

__asm__(".globl _start\n_start:\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall boot\n");
