/* Two programs of the test images, each alone in its image's top layer. Built statically by hack/images. */
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
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
