// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * What all programs have in common: which cgroups are looked at, and the way to user space.
 *
 * User space puts the id of each leaf (cgroup v2) into `leaves`. A cgroup that is made by a process inside
 * a leaf counts as that leaf (lifecycle.c), so a sandbox inside a sandbox hides nothing. What happens
 * in other cgroups ends at one look-up that finds nothing.
 */
#define MOST_LEAVES 16384
#define MOST_THREADS 65536

enum kind { FORKED = 1, EXECUTING = 2, EXECUTED = 3, EXITED = 4, OOM_KILLED = 5 };

struct event_t {
    u64 time_ns;
    u64 leaf;
    u32 kind;
    u32 pid;
    u32 parent;
    s32 status;
};

BPF_HASH(leaves, u64, u64, MOST_LEAVES);
BPF_RINGBUF_OUTPUT(events, RING_PAGES);
BPF_ARRAY(lost_events, u64, 1);

/* bcc's own code has a variable called leaf around the arguments of lookup_or_try_init: keys have other names. */

/* The leaf that the running task is in; 0: in none that is looked at. */
static inline u64 current_leaf(void)
{
    u64 cgroup = bpf_get_current_cgroup_id();
    u64 *leaf = leaves.lookup(&cgroup);
    return leaf ? *leaf : 0;
}

static inline void count_lost(void)
{
    int zero = 0;
    u64 *lost = lost_events.lookup(&zero);
    if (lost)
        __sync_fetch_and_add(lost, 1);
}

static inline void push(u64 leaf, u32 kind, u32 pid, u32 parent, s32 status)
{
    struct event_t event = {};
    event.time_ns = bpf_ktime_get_ns();
    event.leaf = leaf;
    event.kind = kind;
    event.pid = pid;
    event.parent = parent;
    event.status = status;
    if (events.ringbuf_output(&event, sizeof(event), 0))
        count_lost();
}
