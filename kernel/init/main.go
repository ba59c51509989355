// Command init is PID 1 of a peervisor guest. See docs/guest-agent.md.
package main

func main() {}
