package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"
	"github.com/urfave/cli/v2"
)

const bashCompletion = `# bash completion for peervisor: source this file, or install it as
# /usr/share/bash-completion/completions/peervisor
_peervisor() {
  local cur=${COMP_WORDS[COMP_CWORD]} words
  case ${COMP_WORDS[1]} in
    inspect|logs|console|pause|resume|stop|kill|wait|rm)
      if [[ $COMP_CWORD -ge 2 && $cur != -* ]]; then
        COMPREPLY=($(compgen -W "$(peervisor ps -aq 2>/dev/null)" -- "$cur")); return
      fi ;;
  esac
  if [[ $cur == -* ]]; then
    words=$("${COMP_WORDS[@]:0:COMP_CWORD}" "$cur" --generate-bash-completion 2>/dev/null)
  else
    words=$("${COMP_WORDS[@]:0:COMP_CWORD}" --generate-bash-completion 2>/dev/null)
  fi
  COMPREPLY=($(compgen -W "${words}" -- "$cur"))
  [[ ${#COMPREPLY[@]} -eq 0 ]] && COMPREPLY=($(compgen -f -- "$cur"))
}
complete -o nospace -o filenames -F _peervisor peervisor
`

const zshCompletion = `#compdef peervisor
# zsh completion for peervisor: put this file as _peervisor into a folder of $fpath
autoload -U +X bashcompinit && bashcompinit
` + bashCompletion

func completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "print a completion script", ArgsUsage: "bash|zsh|fish",
		Description: "bash: source <(peervisor completion bash)\nfish: peervisor completion fish | source",
		Action: func(c *cli.Context) error {
			switch sh := c.Args().First(); sh {
			case "bash":
				fmt.Print(bashCompletion)
			case "zsh":
				fmt.Print(zshCompletion)
			case "fish":
				s, err := c.App.ToFishCompletion()
				if err != nil {
					return err
				}
				fmt.Print(s)
			default:
				return &exitError{failed, fmt.Sprintf("completion %q: bash, zsh or fish", sh)}
			}
			return nil
		},
	}
}

func manCommand() *cli.Command {
	return &cli.Command{
		Name: "man", Usage: "print the manual page", Description: "peervisor man | man -l -",
		Action: func(c *cli.Context) error {
			_, err := os.Stdout.Write(md2man.Render([]byte(manual(c.App))))
			return err
		},
	}
}

// manual is the manual page as Markdown: every command with its description and flags.
func manual(app *cli.App) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%% PEERVISOR 1 \"\" \"peervisor %s\" \"User Commands\"\n\n# NAME\n\npeervisor - %s\n\n# SYNOPSIS\n\n**peervisor** COMMAND [FLAG]... [ARG]...\n\n# DESCRIPTION\n\n%s\n\n# COMMANDS\n\n",
		app.Version, app.Usage, literal(app.Description))
	manualCommands(&b, "", app.Commands)
	b.WriteString("# SEE ALSO\n\n**qemu-system-x86_64**(1), **ip**(8)\n")
	return b.String()
}

func manualCommands(b *strings.Builder, prefix string, cmds []*cli.Command) {
	for _, c := range cmds {
		if c.Hidden || c.Name == "help" {
			continue
		}
		name := prefix + c.Name
		fmt.Fprintf(b, "## %s %s\n\n%s.\n\n", name, c.ArgsUsage, c.Usage)
		if c.Description != "" {
			fmt.Fprintf(b, "%s\n\n", literal(c.Description))
		}
		for _, f := range c.VisibleFlags() {
			fmt.Fprintf(b, "%s\n\n", literal(f.String()))
		}
		manualCommands(b, name+" ", c.Subcommands)
	}
}

// literal keeps lines and columns as they are.
func literal(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n    ")
}
