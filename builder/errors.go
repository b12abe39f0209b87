package builder

// HintedError is an error against which the user can do something.
type HintedError struct {
	Err    error
	Advice string // what to do; it can follow "hint: "
}

// Error gives the text of Err.
func (e *HintedError) Error() string { return e.Err.Error() }

// Unwrap gives Err.
func (e *HintedError) Unwrap() error { return e.Err }

// Hint gives Advice.
func (e *HintedError) Hint() string { return e.Advice }
