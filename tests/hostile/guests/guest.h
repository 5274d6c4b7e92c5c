/* How the attacks find the ports of their guest. */
#ifndef GUEST_H
#define GUEST_H

#define PORTS "/dev/virtio-ports"
#define AGENT_PORT PORTS "/skerry.agent"

/* Opens a port in the place of whoever has it open, who is killed; returns the descriptor, or -1 where
 * it was cut. As long as it is there and not to be had, the attack lacks it. */
int seize(const char *port, int flags);

#endif
