/* refuse plain|linkless PROGRAM ARGUMENTS: runs a program to which system calls fail as on a bare network file system:
 * flock, renameat2 with flags, fallocate, O_DIRECT, writable shared maps of files; `linkless` also linkat.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef O_DIRECT
#define O_DIRECT 040000 /* x86-64's */
#endif
#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define ARGUMENT(i) LOAD(args[i])
#define FAIL(e) BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (e))
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
/* Skips `n` instructions unless the call is this one. */
#define UNLESS(call, n) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_##call, 0, n)

int main(int argc, char **argv) {
    if (argc < 3) return 64;
    int links = strcmp(argv[1], "linkless") != 0;
    struct sock_filter rules[] = {
        LOAD(nr),
        UNLESS(flock, 1), FAIL(ENOLCK),
        UNLESS(fallocate, 1), FAIL(EOPNOTSUPP),
        UNLESS(linkat, 1), links ? (struct sock_filter)ALLOW : (struct sock_filter)FAIL(EPERM),
#ifdef __NR_link
        UNLESS(link, 1), links ? (struct sock_filter)ALLOW : (struct sock_filter)FAIL(EPERM),
#endif
        UNLESS(renameat2, 4),
        ARGUMENT(4), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 1), ALLOW, FAIL(EINVAL),
        UNLESS(openat, 4),
        ARGUMENT(2), BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, O_DIRECT, 1, 0), ALLOW, FAIL(EINVAL),
        /* A map that is shared, of a file, and can be written. */
        UNLESS(mmap, 7),
        ARGUMENT(2), BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_WRITE, 0, 4),
        ARGUMENT(3), BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, MAP_ANONYMOUS, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, MAP_SHARED, 0, 1), FAIL(ENODEV), ALLOW,
        ALLOW,
    };
    struct sock_fprog program = {sizeof rules / sizeof *rules, rules};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
        perror("refuse: no filter");
        return 64;
    }
    execv(argv[2], argv + 2);
    perror(argv[2]);
    return 64;
}
