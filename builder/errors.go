package builder

// HintedError is an error against which the user can do something.
type HintedError struct {
	Err  error
	hint string
}

// Error gives the text of Err.
func (e *HintedError) Error() string { return e.Err.Error() }

// Unwrap gives Err.
func (e *HintedError) Unwrap() error { return e.Err }

// Hint says what to do, in a form that can follow "hint: ".
func (e *HintedError) Hint() string { return e.hint }
