// Package bench measures this project's machine side by side with others and
// writes the tables of docs/bench.md.
//
// Machines that run builds and CI are noisy, so no absolute figure means much.
// What is compared runs in turn, round by round (ours, the others, ours, …); each
// round gives a ratio, and a table shows the median of the ratios with the
// smallest and the largest. An Experiment is one kind of run with one or more
// figures; Measure and the tables know nothing of what is run, and serve the
// bare guest here and Linux guests in the lab alike.
package bench
