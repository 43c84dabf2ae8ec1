// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * Victims of the OOM killer: an event each, and a count a leaf.
 *
 * mark_victim comes in the context of whoever asked for memory. At a cgroup's own limit that is a process of
 * the leaf, and so is the victim. If the whole machine is out of memory the victim may be of another leaf
 * than who asked, or who asked of none: then the kernel's own count of the victim's cgroup is right
 * (memory.events, memory.oom_control), and this one is not.
 * Overhead: none until there is a victim.
 */
BPF_HASH(oom_kills, u64, u64, MOST_LEAVES);

TRACEPOINT_PROBE(oom, mark_victim)
{
    u64 id = current_leaf(), none = 0, *all;
    if (!id)
        return 0;
    all = oom_kills.lookup_or_try_init(&id, &none);
    if (all)
        __sync_fetch_and_add(all, 1);
    push(id, OOM_KILLED, args->pid, 0, 137);
    return 0;
}
