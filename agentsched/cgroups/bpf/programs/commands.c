// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/*
 * What is executed in leaves: an event with the words of each execve and execveat, before it is known whether
 * it succeeds (lifecycle.c tells that). A search along PATH shows as several of them.
 *
 * The words are bounded: the first MOST_WORDS, and about TEXT_BYTES in all; status is 1 if the last one is cut, or
 * some are missing.
 * They are read from the caller's memory as it stands; a word whose page is not there is missing as well.
 * Overhead: at execs in leaves, of the order of 10 us with long texts.
 */
#define TEXT_BYTES 4096
#define WORD_BYTES 4096
#define MOST_WORDS 24

struct exec_t {
    struct event_t event;
    u32 bytes;
    u32 words;
    char text[TEXT_BYTES + WORD_BYTES];
};

BPF_PERCPU_ARRAY(scratch, struct exec_t, 1);

static inline int executing(const char *const *argv)
{
    u64 leaf = current_leaf();
    int zero = 0;
    u64 at = 0, place;
    u32 words = 0;
    const char *word;
    struct exec_t *exec;
    if (!leaf)
        return 0;
    exec = scratch.lookup(&zero);
    if (!exec)
        return 0;
    exec->event.time_ns = bpf_ktime_get_ns();
    exec->event.leaf = leaf;
    exec->event.kind = EXECUTING;
    exec->event.pid = bpf_get_current_pid_tgid() >> 32;
    exec->event.parent = 0;
    exec->event.status = 1;
#pragma unroll
    for (int i = 0; i < MOST_WORDS; i++) {
        long got;
        if (bpf_probe_read_user(&word, sizeof(word), &argv[i]))
            break;
        if (!word) {
            exec->event.status = 0;
            break;
        }
        if (at >= TEXT_BYTES)
            break;
        /* said to the verifier, which the compiler would not pass on */
        place = at;
        asm volatile("%0 &= %1" : "+r"(place) : "i"(TEXT_BYTES - 1));
        got = bpf_probe_read_user_str(&exec->text[place], WORD_BYTES, word);
        if (got < 0)
            break;
        at += got;
        words++;
        if (got >= WORD_BYTES) /* cut */
            break;
    }
    exec->bytes = at;
    exec->words = words;
    place = at;
    asm volatile("%0 &= %1" : "+r"(place) : "i"(2 * TEXT_BYTES - 1));
    if (events.ringbuf_output(exec, __builtin_offsetof(struct exec_t, text) + place, 0))
        count_lost();
    return 0;
}

TRACEPOINT_PROBE(syscalls, sys_enter_execve)
{
    return executing(args->argv);
}

TRACEPOINT_PROBE(syscalls, sys_enter_execveat)
{
    return executing(args->argv);
}
