#!/bin/sh
# Runs inside the emulated board, or the container, started by a unit when everything else is up;
# jetpack/prove.sh and jetpack/boot_check.sh say which stage. All goes to the serial console or to a
# file; lines that count begin with T.
exec >"${PROVE_OUT:-/dev/console}" 2>&1
stage=${PROVE_STAGE:-$(sed -n 's/.*prove.stage=\([a-z]*\).*/\1/p' /proc/cmdline)}
url=http://127.0.0.1:8080
slots=/var/lib/jetforge-update
prompt='write a quick sort example and print the sorted result'

# Whether what $2 says is so.
t() {
    if (eval "$2") >/tmp/t.out 2>&1; then
        echo "T ok   $1"
    else
        echo "T FAIL $1"
        head -c 600 /tmp/t.out | sed 's/^/T      /'
        echo
    fi
}

uptime_s() { cut -d' ' -f1 /proc/uptime; }
show() { systemctl show "$1" -p "$2" --value; }
pid() { show jetforge MainPID; }

# Asks the service with the key: path, then a body if it is a POST.
ask() {
    if [ $# = 1 ]; then
        wget -q -T 60 -t 1 -O - --header="Authorization: Bearer $(cat /root/key)" "$url$1"
    else
        wget -q -T 120 -t 1 -O - --header="Authorization: Bearer $(cat /root/key)" \
            --header='Content-Type: application/json' --post-data="$2" "$url$1"
    fi
}

# Waits until what $2 says is so, $1 seconds at most.
until_s() {
    n=0
    while ! eval "$2" >/dev/null 2>&1; do
        n=$((n + 1))
        [ $n -lt "$1" ] || return 1
        sleep 1
    done
}

answers() {
    ask /v1/chat/completions "{\"temperature\": 0, \"max_tokens\": 24, \"messages\": [
        {\"role\": \"user\", \"content\": \"$prompt\"}]}" | grep -q 'def quicksort('
}

is_up() { [ "$(systemctl is-active jetforge)" = active ]; }

one_token() { ask /v1/completions '{"prompt": "a", "max_tokens": 1}'; }

post_job() {
    ask /v1/jobs "{\"endpoint\": \"/v1/completions\",
        \"body\": {\"prompt\": \"# $1\", \"max_tokens\": 4}}" |
        sed -n 's/.*"id":"\(job-[^"]*\)".*/\1/p'
}

has_job() { ask "/v1/jobs/$1" | grep -q "\"id\":\"$1\""; }
is_done() { ask "/v1/jobs/$1" | grep -q '"state":"done"'; }

# What the service holds of the machine: resident, of that its own and mapped from files, and what its
# group is charged with.
held() {
    awk '/^(VmRSS|RssAnon|RssFile):/ { printf "%s %d MiB, ", $1, $2 / 1024 }' "/proc/$(pid)/status"
    # A container has no number.
    charged=$(show jetforge MemoryCurrent)
    [ "$charged" -gt 0 ] 2>/dev/null && charged="$((charged / 1048576)) MiB"
    echo "MemoryCurrent: $charged"
}

make_key() {
    jetforge key create "prove$1" --scope admin --scope inference >/root/key
    test -s /root/key
}

# The engine's thread stands still while the rest of the process goes on: it is seized as a debugger
# does it, and interrupted.
freeze_engine() {
    for task in /proc/"$(pid)"/task/*; do
        [ "$(cat "$task/comm")" != engine ] || thread=${task##*/}
    done
    [ -n "$thread" ] || return 1
    case $(uname -m) in
    aarch64) ptrace=117 ;;
    *) ptrace=101 ;;
    esac
    perl -e 'my ($call, $thread) = @ARGV;
        syscall($call + 0, 0x4206, $thread + 0, 0, 0) == 0 or die "seize: $!";
        syscall($call + 0, 0x4207, $thread + 0, 0, 0) == 0 or die "interrupt: $!";
        sleep 600' $ptrace "$thread" &
    debugger=$!
    sleep 1
    kill -0 $debugger && grep -q '^State:.*tracing stop' "/proc/$(pid)/task/$thread/status"
}

# Every file of our name on this system.
ours() {
    find / -xdev '(' -path /tmp -o -path /root -o -path /home ')' -prune \
        -o -name '*jetforge*' -print | sort
}

install() {
    ours >/root/before
    cat /proc/sys/vm/swappiness >/root/swappiness
    echo "T $(systemctl --version | head -n 1), kernel $(uname -r), cgroups $(stat -fc %T /sys/fs/cgroup)"
    # As on 18.04; a container has the kernel of somebody else.
    [ "$stage" = container ] || echo 0 >/proc/sys/kernel/dmesg_restrict
    t 'the package installs' 'dpkg -i /root/jetforge.deb'
    t 'first boot made a key file for root alone' \
        '[ "$(stat -c %U:%a /etc/jetforge/first-boot.txt)" = root:600 ]'
    t 'the journal has no key of it' '! journalctl --no-pager |
        grep -q "$(sed -n "s/^API key *//p" /etc/jetforge/first-boot.txt)"'
    t 'it has a name of its own' 'grep -qE "^jetforge-[0-9a-f]{4}$" /proc/sys/kernel/hostname'
    t 'the service is ready when dpkg is' is_up
    systemctl show jetforge -p Type,WatchdogUSec,StatusText,MemoryMax,TasksMax,NRestarts |
        sed 's/^/T      /'
    t 'a key is made' 'make_key 1'
    t 'without a key nobody is answered' '! wget -q -t 1 -O - $url/v1/jobs'
    t 'the default model answers' 'until_s 30 answers'
    t '8888 answers too' 'url=http://127.0.0.1:8888; answers'
    t 'it is nobody'\''s but jetforge'\''s' '[ "$(stat -c %U /proc/$(pid))" = jetforge ]'
    t 'its memory is bounded' \
        '[ $(($(show jetforge MemoryMax) / 1024)) -lt $(($(sed -n "s/^MemTotal: *\([0-9]*\).*/\1/p" \
            /proc/meminfo) * 4 / 5)) ]'
    t 'it has no rights' 'grep -q "^CapBnd:.*0000000000000000$" /proc/$(pid)/status'
    t 'it writes no core files' 'grep -q "^Max core file size *0 *0 " /proc/$(pid)/limits'
    if [ -c /dev/kmsg ] && [ "$(cat /proc/sys/kernel/dmesg_restrict)" = 0 ]; then
        t 'it may read what the kernel says of its supply' \
            'ask /v1/power | grep -q "\"n_over_current\":[0-9]"'
    fi
    t 'the helper refuses what is no Nano' 'helper | grep -q "^no this is no Jetson Nano"'
    echo "T      idle: $(held)"
    job=$(post_job install)
    kill -9 "$(pid)"
    t 'after kill -9 it is back' 'until_s 90 "[ \$(show jetforge NRestarts) -ge 1 ] && answers"'
    t 'and the job that it had acknowledged is done' 'until_s 60 "is_done $job"'
    t 'what root keeps and brings back the service takes up' 'systemctl stop jetforge &&
        jetforge backup /root/all && rm -r /var/lib/jetforge/keys.json /var/lib/jetforge/state.db &&
        jetforge restore /root/all && systemctl start jetforge && until_s 60 answers'
    t 'a restore that was cut is finished before the service starts' 'systemctl stop jetforge &&
        mkdir -m 700 /var/lib/jetforge-root/restore.next && cd /var/lib/jetforge-root/restore.next &&
        tar -x --no-same-owner -f /root/all && mv SHA256SUMS ../restore.pending &&
        rm /var/lib/jetforge/keys.json && systemctl start jetforge && until_s 60 answers'
    rm -f /root/all
    frozen
    t 'doctor finds nothing bad' \
        'runuser -u jetforge -- env JETFORGE_ROLE=service jetforge doctor >/tmp/doctor'
    sed 's/^/T      /' /tmp/doctor
    t 'no unit has failed' '[ -z "$(systemctl --failed --no-legend --plain)" ]'
    t 'the units verify here' 'systemd-analyze verify --man=no jetforge.service \
        jetforge-first-boot.service jetforge-tune.service jetforge-power.socket \
        jetforge-update.path jetforge-update.service'
    systemd-analyze security --no-pager jetforge.service 2>/dev/null | tail -n 1 | sed 's/^/T      /'
    journalctl -u jetforge --no-pager -o cat | tail -n 12 | sed 's/^/T      /'
    ask "/v1/jobs/$job" >/dev/null && echo "T ack $job"
}

# One line to the helper, as the service's group may.
helper() {
    perl -MIO::Socket::UNIX -e 'my $s = IO::Socket::UNIX->new(Peer => "/run/jetforge/power.sock")
        or die "no socket: $!"; print $s "set - - 1 -\n"; $s->flush; print scalar <$s>'
}

frozen() {
    before=$(show jetforge NRestarts)
    thread='' debugger=''
    if ! freeze_engine; then
        echo 'T FAIL the thread of the engine cannot be stopped'
        return
    fi
    t 'HTTP answers while the engine stands still' 'wget -q -T 10 -t 1 -O - $url/health'
    t 'the watchdog sees it' \
        'until_s 240 "journalctl -u jetforge --no-pager -o cat | grep -q \"atchdog timeout\""'
    # What is killed stays until its debugger has let go of it.
    kill $debugger 2>/dev/null
    t 'and starts it again' \
        'until_s 120 "[ \$(show jetforge NRestarts) -gt $before ] && answers"'
}

start() {
    t 'the service is ready' 'until_s 300 is_up'
    t 'it answers' 'until_s 60 one_token'
    echo "T first token at uptime $(uptime_s)"
    systemd-analyze 2>/dev/null | sed 's/^/T      /'
    t 'what it had acknowledged is there' acknowledged
    in_force
}

# What the appliance's package sets of the system, as the kernel and the journal have it.
in_force() {
    journal="/proc/$(show systemd-journald MainPID)/fd"
    t 'the journal lies in memory' 'ls -l $journal | grep /run/log/journal/ &&
        ! ls -l $journal | grep /var/log/journal/'
    t 'unwritten data is bounded' '[ "$(cat /proc/sys/vm/dirty_bytes)" = 67108864 ] &&
        [ "$(cat /proc/sys/vm/dirty_background_bytes)" = 16777216 ]'
    t 'a kernel that panics starts again' '[ "$(cat /proc/sys/kernel/panic)" = 10 ]'
    t 'what nobody uses is swapped late' '[ "$(cat /proc/sys/vm/swappiness)" = 10 ]'
}

# Half a billion weights under the service, and how much memory it holds with nothing to do.
weights() {
    t 'the service is ready' 'until_s 300 is_up'
    models=/var/lib/jetforge/models
    mkdir -p $models && mv /root/weights.gguf $models/ && chown -R jetforge:jetforge $models
    printf '[model]\nname = "weights"\n' >/etc/jetforge/config.d/20-weights.toml
    echo "T      $(du -m $models/weights.gguf | cut -f 1) MiB of weights"
    t 'it is ready with them' 'systemctl restart jetforge && is_up'
    t 'and they answer' 'until_s 10 "one_token | grep \"model.*weights\""'
    sleep 60
    echo "T idle with them: $(held)"
    t 'without them it is as before' 'rm /etc/jetforge/config.d/20-weights.toml $models/weights.gguf &&
        systemctl restart jetforge && until_s 60 answers'
}

# Every job of every life before.
acknowledged() {
    for disk in /dev/vda /dev/vdb; do
        [ "$(head -c 12 $disk | tr -d '\0')" != acknowledged ] || break
    done
    tr -d '\0' <$disk 2>/dev/null | grep -a '^job-' >/tmp/ids || return 0
    ask '/v1/jobs?limit=500' | grep -o '"id":"job-[^"]*"' | cut -d'"' -f4 | sort >/tmp/known
    sort /tmp/ids | comm -23 - /tmp/known >/tmp/lost
    # The list has an end; what is not in it is asked for.
    for id in $(cat /tmp/lost); do
        has_job "$id" || { echo "lost $id"; return 1; }
    done
}

cut_() {
    t 'the service is ready' 'until_s 300 is_up'
    t 'what was acknowledged is there' acknowledged
    n=0
    while [ $n -lt 25 ]; do
        n=$((n + 1))
        id=$(post_job "$(uptime_s)")
        [ -z "$id" ] || echo "T ack $id"
    done
    sleep 600
}

end() {
    t 'after the last cut it is ready' 'until_s 300 is_up'
    t 'every acknowledged job is there' acknowledged
    t 'every acknowledged job is done' 'until_s 240 all_done'
    t 'the file system is whole' '! dmesg | grep -q "EXT4-fs error"'
    rest
}

# What can be asked only once: it ends with the package gone.
rest() {
    full_disk
    t 'an upgrade goes in' 'dpkg -i /root/newer.deb && dpkg-query -W jetforge | grep -q newer'
    t 'and answers, with the key and the jobs of before' \
        'until_s 60 answers && acknowledged && runs_from /usr/bin'
    t 'a way back' 'dpkg -i /root/jetforge.deb && ! dpkg-query -W jetforge | grep -q newer'
    t 'which answers with the same' 'until_s 60 answers && acknowledged'
    t 'a removal keeps state and configuration' 'dpkg -r jetforge &&
        [ -e /var/lib/jetforge/state.db ] && [ -e /etc/jetforge/config.toml ] &&
        ! is_up'
    # In a container that is another's.
    [ "$stage" = container ] ||
        t 'what was set of the memory is taken back' 'cmp /root/swappiness /proc/sys/vm/swappiness'
    t 'a purge goes' 'dpkg -P jetforge'
    t 'and leaves nothing' 'ours | comm -13 /root/before - >/tmp/left; cat /tmp/left; ! [ -s /tmp/left ]'
    t 'no user and no group' '! getent passwd jetforge && ! getent group jetforge'
    t 'no unit that failed' '[ -z "$(systemctl --failed --no-legend --plain)" ]'
}

all_done() {
    ! ask '/v1/jobs?limit=500' | grep -qE '"state":"(queued|waiting|running)"'
}

full_disk() {
    fallocate -l "$(($(df --output=avail -B1 / | tail -n 1) - 4096))" /root/fill ||
        dd if=/dev/zero of=/root/fill bs=1M
    dd if=/dev/zero of=/root/fill2 bs=4k 2>/dev/null
    echo "T      $(df -h / | tail -n 1 | tr -s ' ')"
    t 'on a full disk it answers' answers
    # A log that has room left takes a few more; what it acknowledges has to stay.
    refused=no n=0
    while [ $n -lt 60 ] && [ $refused = no ]; do
        n=$((n + 1))
        id=$(post_job "full $n")
        if [ -n "$id" ]; then echo "$id" >>/dev/shm/full; else refused=yes; fi
    done
    t 'it refuses what it cannot keep' "[ $refused = yes ]"
    t 'and still answers' answers
    rm -f /root/fill /root/fill2
    t 'with room again it takes work' 'until_s 60 "[ -n \"\$(post_job room)\" ]"'
    t 'what it took while the disk was full is there' \
        'for id in $(cat /dev/shm/full 2>/dev/null); do has_job $id || exit 1; done'
}

# Signs the program $2 as version $1.
release() {
    jetforge update sign "$2" --key /root/release.key --version "$1" --glibc 2.17 \
        --output "/root/$1.update"
}

runs_from() { [ "$(readlink "/proc/$(pid)/exe")" = "$1/jetforge" ]; }

is_decided() { [ ! -e $slots/pending ]; }

# Programs to be tried: the same once more, one that ends at once, and one that ends as a service does
# whose configuration is wrong. And what no machine takes.
releases() {
    t 'releases are signed' 'jetforge update keygen /root/release.key >/root/release.pub &&
        release 9.1 /usr/bin/jetforge && release 9.2 /bin/false && release 9.3 /bin/ls'
    t 'without its key none is taken' '! jetforge update apply /root/9.1.update'
    cp /root/release.pub /etc/jetforge/update.keys
    cp /root/9.1.update /root/changed.update
    printf changed | dd of=/root/changed.update bs=1 seek=1000000 conv=notrunc 2>/dev/null
    t 'one that was changed is not taken' '! jetforge update apply /root/changed.update &&
        ! [ -e $slots/pending ]'
    rm -f /root/changed.update
}

kept() {
    runs_from $slots/a && until_s 60 answers && acknowledged &&
        jetforge update status 2>&1 | grep '9.1 was kept'
}

# What is no good, beside a program that was kept, and the way back from that one.
updates() {
    t 'one that crashes is given up' '! jetforge update apply /root/9.2.update'
    t 'what ran answers again' 'until_s 60 answers && runs_from $slots/a'
    t 'and it says why' 'jetforge update status 2>&1 | grep "9.2 was given up: .*3 starts"'
    t 'one that takes no configuration is given up' '! jetforge update apply /root/9.3.update'
    t 'what ran answers again' 'until_s 60 answers && runs_from $slots/a'
    t 'there is a way back by hand' \
        'jetforge update rollback && until_s 60 "runs_from /usr/bin && answers"'
    t 'and forth' 'jetforge update rollback && until_s 60 "runs_from $slots/a && answers"'
    t 'nobody watches any more' 'is_decided &&
        until_s 10 "! systemctl --quiet is-active jetforge-update.service"'
    journalctl -u jetforge -u jetforge-update --no-pager -o cat | grep -E "tried|given up|kept" |
        sed 's/^/T      /'
}

# The power goes while a program is on trial: at the word `tried`.
trial() {
    t 'the service is ready' 'until_s 300 is_up'
    releases
    jetforge update apply --no-wait /root/9.1.update
    t 'an update is tried' 'until_s 300 "runs_from $slots/a && is_up" && ! is_decided'
    t 'and answers while it is' 'until_s 60 answers && ! is_decided'
    sync
    echo 'T tried'
    sleep 600
}

update() {
    t 'a trial goes on after the power went' 'until_s 300 is_up && runs_from $slots/a && ! is_decided'
    t 'it is kept' 'until_s 400 is_decided'
    t 'and answers, with the key and the jobs of before' kept
    updates
}

# In a container, without boots in between.
container() {
    install
    releases
    t 'an update is tried and kept' 'jetforge update apply /root/9.1.update'
    t 'and answers, with the key and the jobs of before' kept
    updates
    rest
}

case $stage in
cut) cut_ ;;
*) $stage ;;
esac
echo "T end $stage, uptime $(uptime_s)"
sync
systemctl poweroff
