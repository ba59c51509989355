package virtio

import (
	"errors"
	"reflect"
	"testing"
)

// holdHalf keeps what it gets and returns it when quiesced.
type holdHalf struct {
	nullHalf
	held chan []*Request
}

func (h *holdHalf) Submit(_ int, reqs []*Request) { h.held <- append([]*Request(nil), reqs...) }
func (h *holdHalf) Quiesce(int) {
	for {
		select {
		case reqs := <-h.held:
			h.channel.Return(reqs)
		default:
			return
		}
	}
}

// The state of a paused device is complete and does not change; that of a running
// one is refused.
func TestStateOfPausedDevice(t *testing.T) {
	half := &holdHalf{nullHalf: nullHalf{queues: 2}, held: make(chan []*Request, 10)}
	c, q := newBench(t, half, benchFeatures)
	if _, err := c.State(); !errors.Is(err, ErrNotPaused) {
		t.Errorf("state of a running device: %v", err)
	}
	for i := range 3 {
		q.push(i)
	}
	q.kick(0)
	half.held <- <-half.held // they have arrived
	if err := c.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	s, err := c.State()
	if err != nil {
		t.Fatal(err)
	}
	want := QueueState{
		Setup:     QueueSetup{MaxSize: 256, Size: 256, Desc: benchDesc, Driver: benchAvail, Device: benchUsed, Enabled: true},
		NextAvail: 3, NextSeq: 3,
		Returned: []ReturnedRequest{{0, 0}, {1, 3}, {2, 6}},
	}
	if s.Status != 15 || s.Features != benchFeatures || !reflect.DeepEqual(s.Queues[0], want) || s.Queues[1].Setup.Enabled {
		t.Errorf("state %+v", s)
	}
	if again, err := c.State(); err != nil || !reflect.DeepEqual(s, again) {
		t.Errorf("state %+v, then %+v: %v", s, again, err)
	}
	if err := c.Resume(); err != nil {
		t.Fatal(err)
	}
	for _, r := range <-half.held {
		r.Complete(1)
	}
	if n := q.used.Load16(idxOff); n != 3 {
		t.Errorf("used index is %d", n)
	}
}
