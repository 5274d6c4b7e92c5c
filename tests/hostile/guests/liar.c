/* An agent that lies: it takes the place of the guest's own and answers the host's commands as no
 * agent would. First with lies that are well-formed, then with lines that are none.
 */
#include "attack.h"
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LINE 4096

static void say(int port, const char *text, size_t length)
{
	for (int tries = 0; length > 0 && tries < 200 && !over(); tries++) {
		ssize_t done = write(port, text, length);

		if (done > 0) {
			text += done;
			length -= done;
			tries = 0;
		} else if (errno != EAGAIN && errno != EINTR) {
			return;
		} else {
			usleep(5000);
		}
	}
	count(1);
}

/* Well-formed, and untrue: other commands' ends, output of nobody, of this one without an end. */
static void lie(int port, const char *id)
{
	char line[LINE];
	char other[16];

	snprintf(other, sizeof other, "%08u", (unsigned)below(100000000));
	switch (below(5)) {
	case 0: snprintf(line, sizeof line, "exit %s %u\n", other, (unsigned)below(256)); break;
	case 1: snprintf(line, sizeof line, "out %s G1tjG10yO2hpBw==\n", other); break;
	case 2: snprintf(line, sizeof line, "err %s G1tjG10yO2hpBw==\n", id); break;
	default:
		snprintf(line, sizeof line, "out %s ", id);
		memset(line + 13, 'A' + (int)below(26), 4000);
		memcpy(line + 4013, "\n", 2);
		break;
	}
	say(port, line, strlen(line));
}

/* No message at all. */
static void babble(int port, const char *id)
{
	static const char *const LINES[] = {
		"exit 99999999 999\n", "exit -1 0\n", "out 00000001 ====\n", "hello 999 0\n",
		"hello 1 0000000000000000\n", "\n", "exit\n", "argv 00000001 cm0gLXJmIC8=\n",
		"run 00000001\n", "out 00000001 \xff\xfe\n", "poweroff 00000000\n", "out 1 QQ==\n",
	};
	char line[3 * LINE];

	switch (below(4)) {
	case 0:
		snprintf(line, sizeof line, "%s", LINES[below(sizeof LINES / sizeof *LINES)]);
		break;
	case 1: /* a line that does not end */
		memset(line, 'x', sizeof line);
		line[sizeof line - 1] = 0;
		break;
	case 2: /* any bytes */
		for (size_t each = 0; each < sizeof line; each++)
			line[each] = 1 + below(255);
		line[below(sizeof line - 1) + 1] = 0;
		break;
	default: /* longer than a message may be */
		snprintf(line, sizeof line, "out %s ", id);
		memset(line + 13, 'A', 4080);
		memcpy(line + 4093, "\n", 2);
		break;
	}
	say(port, line, strlen(line));
}

static void answer(int port, char *line, char *id, int wild)
{
	char reply[64];

	if (!strncmp(line, "hello ", 6)) {
		snprintf(reply, sizeof reply, "hello 1 %.16s\n", line + 6);
		say(port, reply, strlen(reply));
	} else if (!strncmp(line, "run ", 4)) {
		snprintf(id, 16, "%.8s", line + 4);
		for (uint64_t each = 1 + below(40); each > 0; each--)
			lie(port, id);
		if (wild)
			babble(port, id);
		if (below(3))
			snprintf(reply, sizeof reply, "exit %s %u\n", id, (unsigned)below(256));
		else
			*reply = 0;
		say(port, reply, strlen(reply));
	}
}

void liar(const struct words *words)
{
	char untrusted[LINE], line[LINE] = "", id[16] = "00000000";
	size_t held = 0;
	int port = seize(AGENT_PORT, O_RDWR | O_NONBLOCK), heard = 0;

	ready();
	while (port >= 0 && !over()) {
		struct pollfd waits = {port, POLLIN, 0};
		ssize_t length;

		if (poll(&waits, 1, 100) <= 0)
			continue;
		length = read(port, untrusted, sizeof untrusted);
		if (length <= 0)
			usleep(100000);
		for (ssize_t each = 0; each < length; each++) {
			if (untrusted[each] != '\n' && held < sizeof line - 1) {
				line[held++] = untrusted[each];
				continue;
			}
			line[held] = 0;
			held = 0;
			/* The first commands are answered in form: the port is given up at the rest. */
			answer(port, line, id, heard > 6);
			heard += !strncmp(line, "run ", 4);
		}
	}
}
