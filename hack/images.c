/* Programs of the test images, each alone in its image's top layer. Built statically by hack/images. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifdef PROGRAM_pause
/* Waits for TERM or INT, and reaps what is handed to it as process 1. */
static void end(int signal) { (void)signal; _exit(0); }
static void reap(int signal) { (void)signal; while (waitpid(-1, NULL, WNOHANG) > 0) {} }

int main(void)
{
	struct sigaction on_end = { .sa_handler = end }, on_child = { .sa_handler = reap, .sa_flags = SA_NOCLDSTOP };
	sigaction(SIGINT, &on_end, NULL);
	sigaction(SIGTERM, &on_end, NULL);
	sigaction(SIGCHLD, &on_child, NULL);
	for (;;)
		pause();
}
#endif

#ifdef PROGRAM_nnp
/* Set-uid root in its image: tells whether that was honoured. */
int main(void)
{
	printf("Effective uid: %d\n", (int)geteuid());
	return 0;
}
#endif

#ifdef PROGRAM_count
/* Writes numbered lines that a reader can compute for itself, at so many bytes a second; says on standard error how far
 * it is every MiB; ends with `end LINES`, without a newline, after so many lines (0: never) or on TERM, each with an exit
 * status of its own. The reader is test/src/counting.rs: change both.
 * usage: count LINES BYTES_PER_SECOND STATUS STATUS_ON_TERM */
static volatile sig_atomic_t told;
static void tell(int signal) { (void)signal; told = 1; }

static char out[8192];
static size_t held;
static unsigned long long written;

static void write_all(int fd, const char *bytes, size_t length)
{
	while (length > 0) {
		ssize_t n = write(fd, bytes, length);
		if (n < 0)
			_exit(99);
		bytes += n;
		length -= (size_t)n;
	}
}

static void put(const char *bytes, size_t length)
{
	written += length;
	while (length > 0) {
		size_t n = sizeof out - held < length ? sizeof out - held : length;
		memcpy(out + held, bytes, n);
		held += n;
		bytes += n;
		length -= n;
		if (held == sizeof out) {
			write_all(1, out, held);
			held = 0;
		}
	}
}

/* Most lines are short; some fill a record of the log to the byte, by one byte more, or need several. */
static size_t length_of(unsigned long long line)
{
	if (line % 101 == 7)
		return 16384 - 11;
	if (line % 101 == 57)
		return 16385 - 11;
	if (line % 211 == 13)
		return 50000;
	return 200 + line * 7919 % 1500;
}

int main(int argc, char **argv)
{
	static const char digits[] = "abcdefghijklmnopqrstuvwxyz0123456789";
	static char text[50000 + 36];
	char small[32];
	struct sigaction on_term = { .sa_handler = tell, .sa_flags = SA_RESTART };
	struct timespec begun, now;

	if (argc != 5)
		return 98;
	unsigned long long lines = strtoull(argv[1], NULL, 10), line = 0, marks = 0;
	double rate = strtod(argv[2], NULL);
	for (size_t i = 0; i < sizeof text; i++)
		text[i] = digits[i % 36];
	sigaction(SIGTERM, &on_term, NULL);
	clock_gettime(CLOCK_MONOTONIC, &begun);
	while (!told && (lines == 0 || line < lines)) {
		put(small, (size_t)sprintf(small, "%010llu ", line));
		put(text + line % 36, length_of(line));
		put("\n", 1);
		line++;
		if (written >> 20 > marks) {
			marks++;
			write_all(2, small, (size_t)sprintf(small, "mark %llu\n", marks));
		}
		/* Ahead of its time by 10 ms or more it waits; what a slow log cost is caught up with. */
		clock_gettime(CLOCK_MONOTONIC, &now);
		double spent = (double)(now.tv_sec - begun.tv_sec) + (double)(now.tv_nsec - begun.tv_nsec) / 1e9;
		double ahead = (double)written / rate - spent;
		if (ahead > 0.01) {
			struct timespec pause = { .tv_sec = 0, .tv_nsec = (long)(ahead * 1e9) % 1000000000 };
			nanosleep(&pause, NULL);
		}
	}
	put(small, (size_t)sprintf(small, "end %llu", line));
	write_all(1, out, held);
	return atoi(argv[told ? 4 : 3]);
}
#endif
