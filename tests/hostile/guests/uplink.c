/* Every way out of an uplink that is not on its list: connections to the host's own addresses, above
 * all to a port of its loopback that the list has for another address; questions that are none; and
 * frames with addresses that no network should carry.
 */
#include "attack.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netpacket/packet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define CARD "web"
#define OPEN 64

static const char *const PLACES[] = {
	"192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.255", "10.255.255.1", "10.0.0.1",
	"172.17.0.1", "169.254.169.254", "224.0.0.1", "255.255.255.255", "192.168.0.1", "8.8.8.8",
};

static struct sockaddr_in destination(uint16_t bait)
{
	static const uint16_t PORTS[] = {9, 22, 53, 80, 111, 443, 631, 7811};
	struct sockaddr_in to = {.sin_family = AF_INET};

	inet_pton(AF_INET, PLACES[below(sizeof PLACES / sizeof *PLACES)], &to.sin_addr);
	to.sin_port = htons(below(2) ? bait : PORTS[below(8)]);
	if (below(8) == 0)
		to.sin_port = chance();
	return to;
}

static uint16_t sum(const uint8_t *at, size_t length, uint32_t start)
{
	for (size_t each = 0; each + 1 < length; each += 2)
		start += at[each] << 8 | at[each + 1];
	while (start >> 16)
		start = (start & 0xffff) + (start >> 16);
	return htons(~start);
}

/* A frame that opens a connection to an address which the kernel here would never send to. */
static void forge(int sock, struct sockaddr_ll *to, uint16_t bait)
{
	static const char *const ODD[] = {"127.0.0.1", "127.0.0.1", "0.0.0.0", "192.0.2.1"};
	uint8_t frame[54] = {0};
	uint8_t *ip = frame + 14, *tcp = ip + 20;
	uint16_t check, port = htons(bait);
	uint8_t words[12 + 20] = {0};

	memset(frame, 0xff, 6);
	frame[12] = 8;
	memcpy(ip, "\x45\0\0\x28\0\0\0\0\x40\x06", 10);
	inet_pton(AF_INET, below(2) ? "192.0.2.2" : ODD[below(4)], ip + 12);
	inet_pton(AF_INET, ODD[below(4)], ip + 16);
	check = sum(ip, 20, 0);
	memcpy(ip + 10, &check, 2);
	tcp[0] = 0x80, tcp[1] = chance();
	memcpy(tcp + 2, &port, 2);
	tcp[12] = 0x50, tcp[13] = below(4) ? 2 : chance(), tcp[14] = 0xff;
	memcpy(words, ip + 12, 8);
	words[9] = 6, words[11] = 20;
	memcpy(words + 12, tcp, 20);
	check = sum(words, sizeof words, 0);
	memcpy(tcp + 16, &check, 2);
	if (sendto(sock, frame, sizeof frame, 0, (void *)to, sizeof *to) > 0)
		count(1);
}

static void ask(int sock, uint16_t bait)
{
	struct sockaddr_in to = destination(bait);
	uint8_t question[600];

	for (size_t each = 0; each < sizeof question; each++)
		question[each] = chance();
	if (below(2)) /* the head of a question, and then anything */
		memcpy(question + 2, "\1\0\0\1\0\0\0\0\0\0", 10);
	if (below(2))
		inet_pton(AF_INET, "192.0.2.1", &to.sin_addr), to.sin_port = htons(53);
	if (sendto(sock, question, below(sizeof question), MSG_DONTWAIT, (void *)&to, sizeof to) > 0)
		count(1);
}

void uplink(const struct words *words)
{
	struct sockaddr_ll card = {.sll_family = AF_PACKET, .sll_halen = 6};
	int open[OPEN], next = 0, raw, udp;

	if (system("uplink-up " CARD " >/dev/null") != 0) {
		note("the uplink is not to be had\n");
		return;
	}
	card.sll_ifindex = if_nametoindex(CARD);
	raw = socket(AF_PACKET, SOCK_RAW, 0);
	udp = socket(AF_INET, SOCK_DGRAM, 0);
	for (int each = 0; each < OPEN; each++)
		open[each] = -1;
	ready();
	while (!over()) {
		struct sockaddr_in to = destination(words->bait);
		int sock = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

		if (sock >= 0) {
			connect(sock, (void *)&to, sizeof to);
			/* One of those that were begun before may be connected by now. */
			if (open[next] >= 0) {
				if (send(open[next], words->mark, strlen(words->mark), MSG_NOSIGNAL) > 0)
					count(1);
				close(open[next]);
			}
			open[next] = sock;
			next = (next + 1) % OPEN;
			count(1);
		}
		ask(udp, words->bait);
		forge(raw, &card, words->bait);
		usleep(500);
	}
}
