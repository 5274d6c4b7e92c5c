/* Debian's crashme, one process after the other: random bytes run as a program, as root. */
#include "attack.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROGRAM "/usr/bin/crashme"
#define TRIES "100"

static void run(void)
{
	char seed[24];
	int null = open("/dev/null", O_RDWR);

	snprintf(seed, sizeof seed, "%u", (unsigned)(chance() % 1000000000));
	for (int each = 0; each < 3; each++)
		dup2(null, each);
	setsid(); /* what it sends signals to is its own session, mostly */
	execl(PROGRAM, PROGRAM, "+2000", seed, TRIES, ".", "0", (char *)NULL);
	_exit(127);
}

void crashme(const struct words *words)
{
	if (access(PROGRAM, X_OK)) {
		note("there is no " PROGRAM "\n");
		return;
	}
	while (!over()) {
		pid_t child = fork();
		int status = 0;

		if (child == 0)
			run();
		if (child < 0)
			continue;
		/* A process that hit upon a loop is ended after two seconds. */
		for (int turn = 0; turn < 200 && waitpid(child, &status, WNOHANG) == 0; turn++)
			usleep(10000);
		if (kill(child, SIGKILL) == 0)
			waitpid(child, &status, 0);
		count(1);
	}
}
