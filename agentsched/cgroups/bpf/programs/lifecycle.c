// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Processes of leaves: begun, executing something else, ended. Events, and counts a leaf.
 *
 * Measured: nothing but the moments. task_newtask is the end of a successful clone, in the parent's context;
 * sched_process_exec the moment after which the old program is gone; sched_process_exit the moment at which
 * the last but the leader's own resources go, in the context of what ends.
 * Threads are no processes: they are left out at their start (CLONE_THREAD), and at their end.
 * The status of an end is what exit_group was called with, or 128 + the signal of which signal_deliver says
 * that nobody handles it. A signal that ends a process is delivered as KILL; which one it was is the last one
 * sent to it (signal_generate). A process whose main thread ends by exit(2) alone counts as 0.
 * Numbers are those of the first pid namespace.
 * Overhead: at fork, exec and exit only; exit_group and signals of other cgroups cost one or two look-ups.
 */
#define CLONE_THREAD 0x00010000
#define SIGKILL 9

struct lives_t {
    u64 forks;
    u64 execs;
    u64 exits;
};

BPF_HASH(lives, u64, struct lives_t, MOST_LEAVES);
BPF_HASH(statuses, u32, u32, MOST_THREADS);
BPF_TABLE("lru_hash", u32, u32, sent, 4096);

static inline struct lives_t *lives_of(u64 id)
{
    struct lives_t none = {};
    return lives.lookup_or_try_init(&id, &none);
}

TRACEPOINT_PROBE(task, task_newtask)
{
    u64 leaf = current_leaf();
    struct lives_t *all;
    if (!leaf || (args->clone_flags & CLONE_THREAD))
        return 0;
    all = lives_of(leaf);
    if (all)
        __sync_fetch_and_add(&all->forks, 1);
    push(leaf, FORKED, args->pid, bpf_get_current_pid_tgid() >> 32, 0);
    return 0;
}

TRACEPOINT_PROBE(sched, sched_process_exec)
{
    u64 leaf = current_leaf();
    struct lives_t *all;
    if (!leaf)
        return 0;
    all = lives_of(leaf);
    if (all)
        __sync_fetch_and_add(&all->execs, 1);
    push(leaf, EXECUTED, args->pid, 0, 0);
    return 0;
}

static inline void will_end(u32 status)
{
    u32 pid = bpf_get_current_pid_tgid() >> 32;
    /* the first one counts: other threads of the process are killed then */
    statuses.insert(&pid, &status);
}

TRACEPOINT_PROBE(syscalls, sys_enter_exit_group)
{
    if (current_leaf())
        will_end(args->error_code & 0xff);
    return 0;
}

static inline int ends(u32 sig)
{
    /* Those that end nothing by default: CHLD CONT STOP TSTP TTIN TTOU URG WINCH */
    const u64 harmless = (1ULL << 17) | (1ULL << 18) | (1ULL << 19) | (1ULL << 20) | (1ULL << 21)
        | (1ULL << 22) | (1ULL << 23) | (1ULL << 28);
    return sig > 0 && sig < 64 && !(harmless >> sig & 1);
}

TRACEPOINT_PROBE(signal, signal_generate)
{
    u32 sig = args->sig, pid = args->pid;
    if (ends(sig) && args->result == 0) /* it will be delivered */
        sent.update(&pid, &sig);
    return 0;
}

TRACEPOINT_PROBE(signal, signal_deliver)
{
    u32 pid = bpf_get_current_pid_tgid() >> 32, sig = args->sig, *other;
    if (args->sa_handler || !ends(sig) || !current_leaf())
        return 0;
    other = sig == SIGKILL ? sent.lookup(&pid) : 0;
    will_end(128 + (other ? *other : sig));
    return 0;
}

TRACEPOINT_PROBE(sched, sched_process_exit)
{
    u64 leaf = current_leaf(), id = bpf_get_current_pid_tgid();
    u32 pid = id >> 32, *status;
    struct lives_t *all;
    if (!leaf || pid != (u32)id)
        return 0;
    all = lives_of(leaf);
    if (all)
        __sync_fetch_and_add(&all->exits, 1);
    status = statuses.lookup(&pid);
    push(leaf, EXITED, pid, 0, status ? *status : 0);
    statuses.delete(&pid);
    return 0;
}

TRACEPOINT_PROBE(cgroup, cgroup_mkdir)
{
    u64 leaf = current_leaf(), id = args->id;
    if (leaf && args->root == 0) /* of cgroup v2, whose hierarchy has no other number */
        leaves.insert(&id, &leaf);
    return 0;
}

TRACEPOINT_PROBE(cgroup, cgroup_rmdir)
{
    u64 id = args->id, *leaf;
    if (args->root != 0)
        return 0;
    leaf = leaves.lookup(&id);
    if (leaf && *leaf != id) /* leaves themselves are user space's to forget */
        leaves.delete(&id);
    return 0;
}
