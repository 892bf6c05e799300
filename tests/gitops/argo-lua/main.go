// Runs Lua scripts as Argo CD runs those of a resource: the libraries base, table, package and a part of os, one second, the
// object as `obj`. One JSON object `{"script": …, "object": …}` a line in, `{"value": …}` or `{"error": …}` a line out.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	lua "github.com/yuin/gopher-lua"
	luajson "layeh.com/gopher-json"
)

const (
	// A script and an object of etcd.
	maxLineBytes = 4 << 20
	// As Argo CD has it.
	scriptTimeout = time.Second
)

type request struct {
	Script string          `json:"script"`
	Object json.RawMessage `json:"object"`
}

type answer struct {
	Value json.RawMessage `json:"value,omitempty"`
	Error string          `json:"error,omitempty"`
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, maxLineBytes)
	output := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var one request
		err := json.Unmarshal(lines.Bytes(), &one)
		if err != nil {
			fail(err)
		}
		var result answer
		result.Value, err = run(one)
		if err != nil {
			result = answer{Error: err.Error()}
		}
		if err := output.Encode(result); err != nil {
			fail(err)
		}
	}
	if err := lines.Err(); err != nil {
		fail(err)
	}
}

func run(one request) (json.RawMessage, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for _, library := range []struct {
		name string
		open lua.LGFunction
	}{{lua.LoadLibName, lua.OpenPackage}, {lua.BaseLibName, lua.OpenBase}, {lua.TabLibName, lua.OpenTable}, {lua.OsLibName, lua.OpenOs}} {
		if err := state.CallByParam(lua.P{Fn: state.NewFunction(library.open), Protect: true}, lua.LString(library.name)); err != nil {
			return nil, err
		}
	}
	full := state.GetGlobal("os")
	safe := state.NewTable()
	for _, name := range []string{"date", "time"} {
		safe.RawSetString(name, state.GetField(full, name))
	}
	state.SetGlobal("os", safe)
	object, err := luajson.Decode(state, one.Object)
	if err != nil {
		return nil, err
	}
	state.SetGlobal("obj", object)
	ending, cancel := context.WithTimeout(context.Background(), scriptTimeout)
	defer cancel()
	state.SetContext(ending)
	if err := state.DoString(one.Script); err != nil {
		return nil, err
	}
	value := state.Get(-1)
	if value.Type() != lua.LTTable {
		return nil, fmt.Errorf("the script returned %s, not a table", value.Type())
	}
	return luajson.Encode(value)
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "argo-lua:", err)
	os.Exit(1)
}
