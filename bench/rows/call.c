/* Asks its node for streams by name, one after another: the row of connect.py.
 *
 *     call SERVICE CALLS    prints the nanoseconds from each call to its answer, and to the open
 *                           port of its stream
 *
 * It calls by the guest's own pipes, as every program does (docs/guest.md), and finds the port's
 * device by the name that stands in /sys.
 */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define CALLS "/run/skerry/call"
#define ANSWERS "/run/skerry/calls/bench"
#define PORTS "/sys/class/virtio-ports"

enum { LONGEST = 4096, LOOK_NS = 200000, REST_NS = 300000000 };

static int calls, answers;
static char answer[LONGEST];

static long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void rest(long nanoseconds)
{
	nanosleep(&(struct timespec){0, nanoseconds}, NULL);
}

/* Returns with the answer, which comes in one piece; ends the program if it is not `ok`. */
static void call(const char *verb, const char *what)
{
	char line[128];
	int size = snprintf(line, sizeof line, "1 bench %s %s\n", verb, what);

	if (write(calls, line, size) != size)
		exit(1);
	size = read(answers, answer, LONGEST - 1);
	if (size <= 0)
		exit(1);
	answer[size] = 0;
	if (!strncmp(answer, "denied ", 7) || !strncmp(answer, "failed ", 7) || strstr(answer, "\ndenied ")) {
		fputs(answer, stdout);
		exit(1);
	}
}

/* Returns what the answer says of a key, ended by a zero. */
static char *said(const char *key)
{
	char *text = strstr(answer, key);

	if (!text)
		exit(1);
	text += strlen(key) + 1;
	return strndup(text, strcspn(text, "\n"));
}

/* Returns the open device of the port with this name, or -1. */
static int opened(const char *name)
{
	DIR *ports = opendir(PORTS);
	struct dirent *port;
	int device = -1;

	while (device < 0 && (port = readdir(ports))) {
		char path[512], shown[64];
		int file, size;

		if (*port->d_name == '.')
			continue;
		snprintf(path, sizeof path, PORTS "/%s/name", port->d_name);
		file = open(path, O_RDONLY);
		size = file < 0 ? 0 : read(file, shown, sizeof shown - 1);
		close(file);
		if (size <= 0 || strncmp(shown, name, strlen(name)) || shown[strlen(name)] != '\n')
			continue;
		snprintf(path, sizeof path, "/dev/%s", port->d_name);
		device = open(path, O_RDWR);
	}
	closedir(ports);
	return device;
}

int main(int argc, char **argv)
{
	if (argc != 3 || mkfifo(ANSWERS, 0600))
		return 1;
	answers = open(ANSWERS, O_RDWR);
	calls = open(CALLS, O_WRONLY);
	if (answers < 0 || calls < 0)
		return 1;
	for (int left = atoi(argv[2]); left; left--) {
		long begin = now(), answered;
		int device;

		call("connect", argv[1]);
		answered = now();
		char *name = said("is port"), *number = said("is channel");
		while ((device = opened(name)) < 0)
			rest(LOOK_NS);
		printf("%ld %ld\n", answered - begin, now() - begin);
		close(device);
		call("close", number);
		rest(REST_NS);
	}
	unlink(ANSWERS);
	return 0;
}
