#!/bin/sh
# Tells the host of a virtual machine how the system has booted: JSON objects,
# one a line, on the serial port that vmtest.events= names; the last is the
# done event. Then powers off. The Go type vmtest.Done has the members.
set -u

# The files that are read; a test puts its own in front.
root=${VMTEST_ROOT:-}

# Standard input becomes a JSON string.
json_string() {
	LC_ALL=C awk '
		BEGIN {
			for (i = 1; i < 32; i++) escape[sprintf("%c", i)] = sprintf("\\u%04x", i)
			escape["\""] = "\\\""
			escape["\\"] = "\\\\"
			printf "\""
		}
		{
			if (NR > 1) printf "\\n"
			n = length($0)
			for (i = 1; i <= n; i++) {
				c = substr($0, i, 1)
				printf "%s", c in escape ? escape[c] : c
			}
		}
		END { printf "\"" }
	'
}

# The lines of standard input become a JSON array of strings.
json_array() {
	separator=
	printf '['
	while IFS= read -r line; do
		printf '%s' "$separator"
		printf '%s\n' "$line" | json_string
		separator=,
	done
	printf ']'
}

meminfo() {
	awk -v key="$1:" '$1 == key { print $2 }' "$root/proc/meminfo"
}

# Free memory that the page allocator keeps for each CPU, in kB. MemAvailable
# leaves it out, and how much lies there is chance: up to 50 MB of 1 GB, unless
# the lists are short.
percpu_free() {
	awk -v page="$(getconf PAGESIZE)" '$1 == "count:" { pages += $2 } END { print pages * page / 1024 }' "$root/proc/zoneinfo"
}

# The middle one of three numbers.
median() {
	printf '%s\n' "$@" | sort -n | sed -n 2p
}

shorten_percpu_lists() {
	file=$root/proc/sys/vm/percpu_pagelist_high_fraction
	[ ! -w "$file" ] || echo 1024 >"$file"
}

# Waits, not for long, until the memory of udev's idle workers is back.
settle() {
	tries=10
	while [ "$tries" -gt 0 ] && grep -qsx '(udev-worker)' "$root"/proc/[0-9]*/comm; do
		sleep 1
		tries=$((tries - 1))
	done
}

# Waits, not for long, until the memory that the image was in is back, or it is
# clear that it stays reserved.
await_return() {
	tries=60
	while [ "$tries" -gt 0 ] && [ -e "$root/run/initoverlayfs/return-memory" ]; do
		sleep 1
		tries=$((tries - 1))
	done
}

uptime_s() {
	read -r seconds _ <"$root/proc/uptime"
	printf '%s' "$seconds"
}

# What was read from each disk and partition, by its name.
disks() {
	separator=
	printf '{'
	for file in "$root"/sys/class/block/*/stat; do
		[ -e "$file" ] || continue
		name=${file%/stat}
		read -r requests _ sectors _ <"$file"
		printf '%s"%s":{"requests":%s,"kb":%s}' "$separator" "${name##*/}" "$requests" $((sectors / 2))
		separator=,
	done
	printf '}'
}

# A counter of the whole boot.
vmstat() {
	awk -v key="$1" '$1 == key { n = $2 } END { print n + 0 }' "$root/proc/vmstat"
}

# When systemd reached the target: some time before this script runs.
multi_user_s() {
	systemctl show --property=ActiveEnterTimestampMonotonic multi-user.target 2>/dev/null |
		awk -F= -v now="$reached" '
			$2 + 0 > 0 { now = sprintf("%.6f", $2 / 1e6) }
			END { printf "%s", now }
		'
}

erofs_mounts() {
	awk '{ for (i = 7; i < NF; i++) if ($i == "-") { if ($(i + 1) == "erofs") print; break } }' "$root/proc/1/mountinfo"
}

# Each mounted EROFS has a folder there, also one that no path leads to.
erofs_sysfs() {
	for dir in "$root"/sys/fs/erofs/*/; do
		dir=${dir%/}
		case ${dir##*/} in
		features | '*') ;;
		*) printf '%s\n' "${dir##*/}" ;;
		esac
	done
}

root_options() {
	awk '$5 == "/" { options = $6 } END { printf "%s", options }' "$root/proc/1/mountinfo"
}

# What checked the root filesystem, empty if nothing did.
fsck_root() {
	for unit in systemd-fsck-root.service systemd-fsck-usr.service; do
		systemctl show --property=ExecMainStartTimestampMonotonic,Result,ExecMainStatus "$unit" 2>/dev/null |
			awk -F= -v unit="$unit" '
				{ value[$1] = $2 }
				END {
					if (value["ExecMainStartTimestampMonotonic"] + 0 > 0)
						print unit, value["Result"], value["ExecMainStatus"]
				}
			'
	done
	if [ -e "$root/run/initramfs/fsck-root" ]; then
		echo 'initramfs-tools fsck-root'
		cat "$root/run/initramfs/fsck.log" 2>/dev/null
	fi
}

record() {
	file=$root/run/initoverlayfs/boot.json
	text=
	[ ! -e "$file" ] || text=$(tr -d "\n" <"$file")
	case $text in
	'{'*'}') printf '%s' "$text" ;;
	*) printf 'null' ;;
	esac
}

done_event() {
	await_return
	shorten_percpu_lists
	settle
	sleep 1
	first=$(meminfo MemAvailable)
	first_percpu=$(percpu_free)
	sleep 1
	second=$(meminfo MemAvailable)
	second_percpu=$(percpu_free)
	sleep 1
	third=$(meminfo MemAvailable)
	third_percpu=$(percpu_free)
	printf '{"event":"done","ok":true'
	printf ',"uptime_s":%s' "$reached"
	printf ',"mem_available_kb":%s' "$(median "$first" "$second" "$third")"
	printf ',"cached_kb":%s,"shmem_kb":%s' "$(meminfo Cached)" "$(meminfo Shmem)"
	printf ',"mem_samples_kb":[%s,%s,%s]' "$first" "$second" "$third"
	printf ',"mem_percpu_kb":[%s,%s,%s]' "$first_percpu" "$second_percpu" "$third_percpu"
	printf ',"mem_usable_kb":%s' "$(median $((first + first_percpu)) $((second + second_percpu)) $((third + third_percpu)))"
	printf ',"mem_total_kb":%s' "$(meminfo MemTotal)"
	printf ',"read_kb":%s,"disks":%s' "$read_kb" "$read"
	printf ',"faults":%s,"major_faults":%s' "$faults" "$major_faults"
	printf ',"record":%s' "$(record)"
	printf ',"mountinfo":%s' "$(json_string <"$root/proc/1/mountinfo")"
	printf ',"erofs_mounts":%s' "$(erofs_mounts | json_array)"
	printf ',"erofs_sysfs":%s' "$(erofs_sysfs | json_array)"
	printf ',"root_options":%s' "$(root_options | json_string)"
	printf ',"fsck":%s' "$(fsck_root | json_string)"
	printf ',"failed_units":%s' "$(systemctl --failed --plain --no-legend --quiet 2>/dev/null | awk '{ print $1 }' | json_array)"
	printf '}\n'
}

reached=$(uptime_s)
# Before anything else is read.
read_kb=$(vmstat pgpgin)
read=$(disks)
faults=$(vmstat pgfault)
major_faults=$(vmstat pgmajfault)
case ${1:-} in
--print)
	done_event
	exit
	;;
esac

events=
read -r cmdline </proc/cmdline
for word in $cmdline; do
	case $word in
	vmtest.events=*) events=/dev/${word#*=} ;;
	esac
done
if [ ! -c "$events" ]; then
	echo "vmtest-agent: no serial port ${events:-named}" >&2
	exit 1
fi
# Raw, so that the terminal changes nothing.
stty -F "$events" raw -echo
{
	printf '{"event":"multi-user","uptime_s":%s}\n' "$(multi_user_s)"
	done_event
} >"$events"
echo 'vmtest-agent: reported, powering off' >/dev/console
# The closing of the port has waited until the host had every byte.
systemctl poweroff --force --force
