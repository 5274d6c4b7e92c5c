/* Takes a port from the guest's own programs: only one may have it open. */
#include "attack.h"
#include "guest.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int holds(const char *process, const char *device)
{
	char path[300], target[300];
	DIR *folder;
	struct dirent *entry;
	int found = 0;

	snprintf(path, sizeof path, "/proc/%s/fd", process);
	folder = opendir(path);
	while (folder != NULL && !found && (entry = readdir(folder)) != NULL) {
		ssize_t length = readlinkat(dirfd(folder), entry->d_name, target, sizeof target - 1);

		target[length < 0 ? 0 : length] = 0;
		found = !strcmp(target, device);
	}
	if (folder != NULL)
		closedir(folder);
	return found;
}

/* What starts such a program again waits a second first. */
static void kill_holders(const char *device)
{
	DIR *folder = opendir("/proc");
	struct dirent *entry;

	while (folder != NULL && (entry = readdir(folder)) != NULL)
		if (isdigit((unsigned char)entry->d_name[0]) && holds(entry->d_name, device))
			kill(atoi(entry->d_name), SIGKILL);
	if (folder != NULL)
		closedir(folder);
}

int seize(const char *port, int flags)
{
	lacks(1);
	while (!over()) {
		char device[300];
		ssize_t length = readlink(port, device, sizeof device - 1);
		int opened = open(port, flags);

		if (opened >= 0 || errno == ENOENT || errno == ENXIO || errno == ENODEV) {
			lacks(-1);
			return opened;
		}
		device[length < 0 ? 0 : length] = 0;
		kill_holders(device);
		usleep(20000);
	}
	note("%s is not to be had\n", port);
	return -1;
}
