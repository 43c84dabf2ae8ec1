// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Where the time of a leaf's threads goes: running, ready but not running (run-queue delay), asleep, and in
 * uninterruptible sleep (as a rule for a disk), each in nanoseconds a leaf.
 *
 * Running: between two sched_switch. Ready: from sched_wakeup, or from a switch in state running (preempted),
 * to the switch to it. Asleep: from the switch away to sched_wakeup. What goes on now counts when it
 * ends; `threads` says since when it does. A thread is known from its first switch in a leaf on, and
 * what passes until the next one counts to the leaf of the last one.
 * Overhead: at every context switch of the machine two look-ups, and two updates for threads of leaves.
 */
#define ENDING 0x30 /* X, Z: states as the tracepoint writes them */

enum doing { RUNNING = 0, READY = 1, ASLEEP = 2, WAITING = 3 };

struct thread_t {
    u64 leaf;
    u64 since_ns;
    u32 doing;
    u32 pid;
};

struct spent_t {
    u64 ns[4];
    u64 switches;
};

BPF_HASH(threads, u32, struct thread_t, MOST_THREADS);
BPF_HASH(spent, u64, struct spent_t, MOST_LEAVES);

static inline void now_doing(struct thread_t *thread, u32 doing, u64 now)
{
    struct spent_t none = {}, *all = spent.lookup_or_try_init(&thread->leaf, &none);
    if (all && now > thread->since_ns)
        __sync_fetch_and_add(&all->ns[thread->doing & 3], now - thread->since_ns);
    thread->since_ns = now;
    thread->doing = doing;
}

TRACEPOINT_PROBE(sched, sched_switch)
{
    u64 now = bpf_ktime_get_ns(), leaf = current_leaf();
    u32 prev = args->prev_pid, next = args->next_pid;
    struct thread_t *thread, fresh = {};
    struct spent_t *all;
    if (leaf) {
        u32 doing = READY;
        if (args->prev_state & 2)
            doing = WAITING;
        else if (args->prev_state & 0x4d) /* S, T (stopped), t (traced), P (parked) */
            doing = ASLEEP;
        thread = threads.lookup(&prev);
        if (thread) {
            thread->leaf = leaf;
            now_doing(thread, doing, now);
        } else if (!(args->prev_state & ENDING)) {
            fresh.leaf = leaf;
            fresh.since_ns = now;
            fresh.doing = doing;
            fresh.pid = bpf_get_current_pid_tgid() >> 32;
            threads.update(&prev, &fresh);
        }
        all = spent.lookup(&leaf);
        if (all)
            __sync_fetch_and_add(&all->switches, 1);
        if (args->prev_state & ENDING)
            threads.delete(&prev);
    }
    thread = threads.lookup(&next);
    if (thread)
        now_doing(thread, RUNNING, now);
    return 0;
}

static inline int woken(u32 pid)
{
    struct thread_t *thread = threads.lookup(&pid);
    if (thread && thread->doing >= ASLEEP)
        now_doing(thread, READY, bpf_ktime_get_ns());
    return 0;
}

TRACEPOINT_PROBE(sched, sched_wakeup)
{
    return woken(args->pid);
}

/* A new thread is ready from here on, and in the cgroup of who made it. */
TRACEPOINT_PROBE(sched, sched_wakeup_new)
{
    u64 leaf = current_leaf();
    struct thread_t fresh = {};
    u32 pid = args->pid;
    if (!leaf)
        return 0;
    fresh.leaf = leaf;
    fresh.since_ns = bpf_ktime_get_ns();
    fresh.doing = READY;
    threads.update(&pid, &fresh);
    return 0;
}
