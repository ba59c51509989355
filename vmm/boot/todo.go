package boot

import "errors"

var errNotYet = errors.New("boot: not written yet")
