/* How the attacks find the ports of their guest. */
#ifndef GUEST_H
#define GUEST_H

#define PORTS "/dev/virtio-ports"
#define AGENT_PORT PORTS "/skerry.agent"

/* Ends the guest's agent and opens its port in its place; returns the descriptor, or -1. */
int seize_agent(void);

#endif
